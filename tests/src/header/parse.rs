//! Reads `crates/abi`.

use super::eval::{Known, eval};
use super::{Abi, Constant, Field, Item, Part, Struct};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use syn::parse::{Parse, ParseStream};
use syn::{Attribute, Expr, Fields, Lit, Meta, Token, Type, Visibility, braced, parenthesized};

/// The modules that describe the wire, in the order in which they depend on each other, and what
/// the names of their constants begin with in C.
const MODULES: [(&str, &str); 10] = [
    ("lib", "OFFMAP_"),
    ("notify", "OFFMAP_"),
    ("regs", "OFFMAP_"),
    ("opcode", "OFFMAP_"),
    ("status", "OFFMAP_"),
    ("map_type", "OFFMAP_"),
    ("submission", "OFFMAP_"),
    ("completion", "OFFMAP_"),
    ("admin", "OFFMAP_"),
    ("ringbuf", "OFFMAP_RINGBUF_"),
];
/// Those that do not: functions, types of Rust, and arithmetic.
const OTHERS: [&str; 4] = ["fence", "hash", "ids", "ring"];

/// The ABI as its sources in `folder` describe it.
///
/// # Errors
///
/// A sentence about the first thing that is not understood: nothing is left out in silence.
pub fn read(folder: &Path) -> Result<Abi, String> {
    let there: BTreeSet<String> = std::fs::read_dir(folder)
        .map_err(|e| format!("{}: {e}", folder.display()))?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix(".rs")?.to_owned())
        })
        .collect();
    let named = MODULES.iter().map(|(name, _)| *name).chain(OTHERS);
    let named: BTreeSet<String> = named.map(str::to_owned).collect();
    if there != named {
        let new: Vec<_> = there.symmetric_difference(&named).collect();
        return Err(format!("modules that are new or gone: {new:?}"));
    }
    let (mut abi, mut known) = (Abi::default(), Known::new());
    for (module, prefix) in MODULES {
        let path = folder.join(format!("{module}.rs"));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{module}: {e}"))?;
        let file = syn::parse_file(&text).map_err(|e| format!("{module}: {e}"))?;
        let items = items(&file, prefix, &mut known).map_err(|e| format!("{module}: {e}"))?;
        let doc = doc(&file.attrs)
            .into_iter()
            .take_while(|line| !line.is_empty());
        abi.parts.push(Part {
            doc: doc.collect(),
            items,
        });
    }
    let mut names = BTreeSet::new();
    let structs = abi.structs().map(|s| &s.name);
    for name in abi.constants().map(|c| &c.name).chain(structs) {
        if !names.insert(name.clone()) {
            return Err(format!("{name} stands for two things"));
        }
    }
    Ok(abi)
}

fn items(file: &syn::File, prefix: &str, known: &mut Known) -> Result<Vec<Item>, String> {
    let layouts = layouts(file)?;
    let mut items = Vec::new();
    for item in &file.items {
        match item {
            syn::Item::Const(item) if matches!(item.vis, Visibility::Public(_)) => {
                let name = item.ident.to_string();
                let value = eval(&item.expr, known).map_err(|e| format!("{name}: {e}"))?;
                known.insert(name.clone(), value);
                let wide = matches!(&*item.ty, Type::Path(p) if p.path.is_ident("u64"));
                items.push(Item::Constant(Constant {
                    doc: doc(&item.attrs),
                    name: format!("{prefix}{name}"),
                    value,
                    bits: if wide { 64 } else { 32 },
                }));
            }
            syn::Item::Struct(item) if is_wire(&item.attrs) => {
                let name = item.ident.to_string();
                let described = structure(item, &layouts, known);
                items.push(Item::Struct(described.map_err(|e| format!("{name}: {e}"))?));
            }
            syn::Item::Macro(item) => {
                let name = item.mac.path.segments.last().map(|s| s.ident.to_string());
                let (doc, values) = match name.as_deref() {
                    Some("open_enum") => {
                        let set: Open = item.mac.parse_body().map_err(|e| e.to_string())?;
                        set.0.constants(prefix, known)?
                    }
                    Some("bitflags") => {
                        let sets: Flags = item.mac.parse_body().map_err(|e| e.to_string())?;
                        for set in sets.0 {
                            let (doc, values) = set.constants(prefix, known)?;
                            items.push(Item::Set { doc, values });
                        }
                        continue;
                    }
                    _ => continue,
                };
                items.push(Item::Set { doc, values });
            }
            _ => {}
        }
    }
    Ok(items)
}

/// Whether a structure is a wire image: it is laid out as C does.
fn is_wire(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        attr.path().is_ident("repr")
            && attr
                .parse_args::<syn::Path>()
                .is_ok_and(|repr| repr.is_ident("C"))
    })
}

fn structure(
    item: &syn::ItemStruct,
    layouts: &BTreeMap<String, Layout>,
    known: &Known,
) -> Result<Struct, String> {
    let rust = item.ident.to_string();
    let layout = layouts.get(&rust).ok_or("no assert_layout! beside it")?;
    let Fields::Named(named) = &item.fields else {
        return Err("its fields have no names".into());
    };
    let mut fields = Vec::new();
    for field in &named.named {
        let name = field
            .ident
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let (width, count) = field_type(&field.ty, known).map_err(|e| format!("{name}: {e}"))?;
        let offset = layout
            .offsets
            .get(&name)
            .ok_or_else(|| format!("{name} has no offset"))?;
        fields.push(Field {
            doc: doc(&field.attrs),
            name,
            width,
            count,
            offset: *offset,
        });
    }
    if fields.len() != layout.offsets.len() {
        return Err("assert_layout! has other fields".into());
    }
    Ok(Struct {
        doc: doc(&item.attrs),
        name: format!("offmap_{}", snake(&rust)),
        rust,
        size: layout.size,
        fields,
    })
}

/// Bytes of an element, and how many.
fn field_type(ty: &Type, known: &Known) -> Result<(u64, Option<u64>), String> {
    match ty {
        Type::Path(path) => {
            let name = path.path.segments.last().map(|s| s.ident.to_string());
            match name.as_deref() {
                Some("u8") => Ok((1, None)),
                Some("U16") => Ok((2, None)),
                Some("U32") => Ok((4, None)),
                Some("U64") => Ok((8, None)),
                _ => Err("a type that has no counterpart in C here".into()),
            }
        }
        Type::Array(array) => match field_type(&array.elem, known)? {
            (width, None) => Ok((width, Some(eval(&array.len, known)?))),
            _ => Err("an array of arrays".into()),
        },
        _ => Err("a type that has no counterpart in C here".into()),
    }
}

/// The arguments of an `assert_layout!`.
struct Layout {
    name: String,
    size: u64,
    offsets: BTreeMap<String, u64>,
}

impl Parse for Layout {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name: syn::Ident = input.parse()?;
        input.parse::<Token![,]>()?;
        let size: syn::LitInt = input.parse()?;
        input.parse::<Token![,]>()?;
        let inside;
        braced!(inside in input);
        let mut offsets = BTreeMap::new();
        while !inside.is_empty() {
            let field: syn::Ident = inside.parse()?;
            inside.parse::<Token![:]>()?;
            let offset: syn::LitInt = inside.parse()?;
            offsets.insert(field.to_string(), offset.base10_parse()?);
            if !inside.is_empty() {
                inside.parse::<Token![,]>()?;
            }
        }
        Ok(Self {
            name: name.to_string(),
            size: size.base10_parse()?,
            offsets,
        })
    }
}

fn layouts(file: &syn::File) -> Result<BTreeMap<String, Layout>, String> {
    let mut layouts = BTreeMap::new();
    for item in &file.items {
        if let syn::Item::Macro(item) = item
            && item.mac.path.is_ident("assert_layout")
        {
            let layout: Layout = item.mac.parse_body().map_err(|e| e.to_string())?;
            layouts.insert(layout.name.clone(), layout);
        }
    }
    Ok(layouts)
}

/// Named values of an integer type.
struct Values {
    attrs: Vec<Attribute>,
    name: String,
    wide: bool,
    values: Vec<(Vec<Attribute>, String, Expr)>,
}

impl Values {
    fn constants(
        self,
        prefix: &str,
        known: &Known,
    ) -> Result<(Vec<String>, Vec<Constant>), String> {
        let set = snake(&self.name).to_uppercase();
        let mut values = Vec::new();
        for (attrs, name, expr) in self.values {
            let value = eval(&expr, known).map_err(|e| format!("{name}: {e}"))?;
            values.push(Constant {
                doc: doc(&attrs),
                name: format!("{prefix}{set}_{}", snake(&name).to_uppercase()),
                value,
                bits: if self.wide { 64 } else { 32 },
            });
        }
        Ok((doc(&self.attrs), values))
    }
}

/// The body of an `open_enum!`.
struct Open(Values);

impl Parse for Open {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        input.parse::<Token![pub]>()?;
        input.parse::<Token![struct]>()?;
        let name: syn::Ident = input.parse()?;
        let repr;
        parenthesized!(repr in input);
        let repr: syn::Ident = repr.parse()?;
        let inside;
        braced!(inside in input);
        let mut values = Vec::new();
        while !inside.is_empty() {
            let attrs = inside.call(Attribute::parse_outer)?;
            let name: syn::Ident = inside.parse()?;
            inside.parse::<Token![=]>()?;
            values.push((attrs, name.to_string(), inside.parse()?));
            inside.parse::<Token![,]>()?;
        }
        Ok(Self(Values {
            attrs,
            name: name.to_string(),
            wide: repr == "u64",
            values,
        }))
    }
}

/// The body of a `bitflags!`.
struct Flags(Vec<Values>);

impl Parse for Flags {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut sets = Vec::new();
        while !input.is_empty() {
            let attrs = input.call(Attribute::parse_outer)?;
            input.parse::<Token![pub]>()?;
            input.parse::<Token![struct]>()?;
            let name: syn::Ident = input.parse()?;
            input.parse::<Token![:]>()?;
            let repr: syn::Ident = input.parse()?;
            let inside;
            braced!(inside in input);
            let mut values = Vec::new();
            while !inside.is_empty() {
                let attrs = inside.call(Attribute::parse_outer)?;
                inside.parse::<Token![const]>()?;
                // All bits are kept: that is no flag.
                let name = match inside.parse::<Option<Token![_]>>()? {
                    Some(_) => None,
                    None => Some(inside.parse::<syn::Ident>()?),
                };
                inside.parse::<Token![=]>()?;
                let value = inside.parse()?;
                inside.parse::<Token![;]>()?;
                if let Some(name) = name {
                    values.push((attrs, name.to_string(), value));
                }
            }
            sets.push(Values {
                attrs,
                name: name.to_string(),
                wide: repr == "u64",
                values,
            });
        }
        Ok(Self(sets))
    }
}

/// The lines of a doc comment, without the marks of links and code.
fn doc(attrs: &[Attribute]) -> Vec<String> {
    attrs
        .iter()
        .filter_map(|attr| match &attr.meta {
            Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
                Expr::Lit(lit) => match &lit.lit {
                    Lit::Str(text) => Some(plain(text.value().trim())),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// A line without brackets and backticks of links, and without paths of Rust.
fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("[`") {
        let (before, link) = rest.split_at(at);
        let (name, after) = link[2..].split_once("`]").unwrap_or((&link[2..], ""));
        text += before;
        text += name.rsplit("::").next().unwrap_or(name);
        rest = after;
    }
    (text + rest).replace('`', "").replace("*/", "* /")
}

/// `QueueCreateBody` as `queue_create_body`.
fn snake(name: &str) -> String {
    if name.chars().all(|c| !c.is_lowercase()) {
        return name.to_lowercase();
    }
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
}
