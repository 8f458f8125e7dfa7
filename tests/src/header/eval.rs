//! Evaluates the constant expressions of `crates/abi`, as far as it has them.

use std::collections::BTreeMap;
use syn::{BinOp, Expr, Lit, UnOp};

/// Values by name: of constants that came before.
pub(super) type Known = BTreeMap<String, u64>;

/// The value of an expression.
pub(super) fn eval(expr: &Expr, known: &Known) -> Result<u64, String> {
    match expr {
        Expr::Lit(lit) => match &lit.lit {
            Lit::Int(int) => int.base10_parse().map_err(|e| e.to_string()),
            Lit::Byte(byte) => Ok(byte.value().into()),
            _ => Err("a literal that is no number".into()),
        },
        Expr::Paren(inner) => eval(&inner.expr, known),
        Expr::Cast(cast) => eval(&cast.expr, known),
        Expr::Path(path) => {
            let names: Vec<_> = path
                .path
                .segments
                .iter()
                .map(|s| s.ident.to_string())
                .collect();
            match &names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["u32", "MAX"] => Ok(u32::MAX.into()),
                [.., name] => {
                    let value = known.get(*name).copied();
                    value.ok_or_else(|| format!("{name} is not known yet"))
                }
                [] => Err("a path of nothing".into()),
            }
        }
        Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_)) => Ok(!eval(&unary.expr, known)?),
        Expr::Binary(binary) => {
            let (a, b) = (eval(&binary.left, known)?, eval(&binary.right, known)?);
            let value = match binary.op {
                BinOp::Add(_) => a.checked_add(b),
                BinOp::Sub(_) => a.checked_sub(b),
                BinOp::Mul(_) => a.checked_mul(b),
                BinOp::Div(_) => a.checked_div(b),
                BinOp::Shl(_) => u32::try_from(b).ok().and_then(|b| a.checked_shl(b)),
                BinOp::BitOr(_) => Some(a | b),
                _ => None,
            };
            value.ok_or_else(|| "an operation that is not known here".into())
        }
        // `u64::from_le_bytes(*b"…")`.
        Expr::Call(call) => match (&*call.func, call.args.first()) {
            (Expr::Path(f), Some(Expr::Unary(bytes)))
                if f.path
                    .segments
                    .last()
                    .is_some_and(|s| s.ident == "from_le_bytes") =>
            {
                let Expr::Lit(lit) = &*bytes.expr else {
                    return Err("from_le_bytes of no literal".into());
                };
                let Lit::ByteStr(text) = &lit.lit else {
                    return Err("from_le_bytes of no bytes".into());
                };
                let bytes = <[u8; 8]>::try_from(text.value());
                bytes
                    .map(u64::from_le_bytes)
                    .map_err(|_| "not eight bytes".into())
            }
            _ => Err("a call that is not known here".into()),
        },
        // A class code: three bytes, the most significant first, as specifications write it.
        Expr::Array(array) => array.elems.iter().try_fold(0, |value, byte| {
            let byte = eval(byte, known)?;
            Ok(value << 8 | byte)
        }),
        _ => Err("an expression that is not known here".into()),
    }
}
