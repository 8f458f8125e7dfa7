//! Rules about one Rust file. Files are parsed, so that comments and strings do not count.

use syn::visit::{self, Visit};
use syn::{
    Attribute, Expr, Fields, ImplItem, Item, Lit, Meta, StaticMutability, TraitItem, Visibility,
};

/// Whether a crate root has `#![forbid(unsafe_code)]`.
pub fn forbids_unsafe(root: &syn::File) -> bool {
    root.attrs.iter().any(|attr| {
        attr.path().is_ident("forbid")
            && attr
                .parse_args::<syn::Path>()
                .is_ok_and(|lint| lint.is_ident("unsafe_code"))
    })
}

/// Everything unsafe in a file, by what it is; the word inside macros counts too.
pub fn unsafe_uses(file: &syn::File) -> Vec<&'static str> {
    let mut found = Unsafe(Vec::new());
    found.visit_file(file);
    found.0
}

struct Unsafe(Vec<&'static str>);

impl<'ast> Visit<'ast> for Unsafe {
    fn visit_expr_unsafe(&mut self, node: &'ast syn::ExprUnsafe) {
        self.0.push("unsafe block");
        visit::visit_expr_unsafe(self, node);
    }
    fn visit_signature(&mut self, node: &'ast syn::Signature) {
        if node.unsafety.is_some() {
            self.0.push("unsafe fn");
        }
        visit::visit_signature(self, node);
    }
    fn visit_item_impl(&mut self, node: &'ast syn::ItemImpl) {
        if node.unsafety.is_some() {
            self.0.push("unsafe impl");
        }
        visit::visit_item_impl(self, node);
    }
    fn visit_item_trait(&mut self, node: &'ast syn::ItemTrait) {
        if node.unsafety.is_some() {
            self.0.push("unsafe trait");
        }
        visit::visit_item_trait(self, node);
    }
    fn visit_item_foreign_mod(&mut self, node: &'ast syn::ItemForeignMod) {
        self.0.push("foreign block");
        visit::visit_item_foreign_mod(self, node);
    }
    fn visit_item_static(&mut self, node: &'ast syn::ItemStatic) {
        if matches!(node.mutability, StaticMutability::Mut(_)) {
            self.0.push("static mut");
        }
        visit::visit_item_static(self, node);
    }
    fn visit_attribute(&mut self, node: &'ast Attribute) {
        if node.path().is_ident("unsafe") {
            self.0.push("unsafe attribute");
        }
        visit::visit_attribute(self, node);
    }
    fn visit_macro(&mut self, node: &'ast syn::Macro) {
        let tokens = node.tokens.to_string();
        let mut words = tokens.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '"');
        if words.any(|word| word == "unsafe") {
            self.0.push("unsafe in a macro");
        }
        visit::visit_macro(self, node);
    }
}

/// What was left for later: `todo!`, `unimplemented!`, `dbg!`, and `#[ignore]` without a
/// reason.
pub fn leftovers(file: &syn::File) -> Vec<String> {
    let mut found = Leftovers(Vec::new());
    found.visit_file(file);
    found.0
}

struct Leftovers(Vec<String>);

impl<'ast> Visit<'ast> for Leftovers {
    fn visit_macro(&mut self, node: &'ast syn::Macro) {
        if let Some(last) = node.path.segments.last() {
            let name = last.ident.to_string();
            if ["todo", "unimplemented", "dbg"].contains(&name.as_str()) {
                self.0.push(format!("{name}!"));
            }
        }
        visit::visit_macro(self, node);
    }
    fn visit_attribute(&mut self, node: &'ast Attribute) {
        if node.path().is_ident("ignore") && !matches!(node.meta, Meta::NameValue(_)) {
            self.0.push("#[ignore] without a reason".into());
        }
        visit::visit_attribute(self, node);
    }
}

/// Public items without documentation. Modules in files of their own are looked up through
/// `module_has_docs`, by name; what macros declare is left to the compiler's lint.
pub fn undocumented(file: &syn::File, module_has_docs: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    items(&file.items, "", module_has_docs, &mut found);
    found
}

fn has_docs(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| match &attr.meta {
        Meta::NameValue(nv) if nv.path.is_ident("doc") => match &nv.value {
            Expr::Lit(lit) => matches!(&lit.lit, Lit::Str(s) if !s.value().trim().is_empty()),
            // `#[doc = concat!(…)]`.
            _ => true,
        },
        _ => false,
    })
}

/// Whether the item says, with a reason as the lint demands, that it needs none.
fn is_excused(attrs: &[Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let Meta::List(list) = &attr.meta else {
            return false;
        };
        let tokens = list.tokens.to_string();
        let lints = attr.path().is_ident("expect") || attr.path().is_ident("allow");
        let test = attr.path().is_ident("cfg") && tokens == "test";
        let hidden = attr.path().is_ident("doc") && tokens == "hidden";
        (lints && tokens.contains("missing_docs") && tokens.contains("reason =")) || test || hidden
    })
}

/// Whether the file itself, as a module, has documentation.
pub fn file_has_docs(file: &syn::File) -> bool {
    has_docs(&file.attrs)
}

fn items(
    items_: &[Item],
    inside: &str,
    module_has_docs: &dyn Fn(&str) -> bool,
    found: &mut Vec<String>,
) {
    let mut need = |vis: &Visibility, attrs: &[Attribute], what: String| {
        let public = matches!(vis, Visibility::Public(_));
        if public && !is_excused(attrs) && !has_docs(attrs) {
            found.push(format!("{inside}{what}"));
        }
    };
    for item in items_ {
        match item {
            Item::Const(i) => need(&i.vis, &i.attrs, format!("const {}", i.ident)),
            Item::Static(i) => need(&i.vis, &i.attrs, format!("static {}", i.ident)),
            Item::Fn(i) => need(&i.vis, &i.attrs, format!("fn {}", i.sig.ident)),
            Item::Type(i) => need(&i.vis, &i.attrs, format!("type {}", i.ident)),
            Item::Union(i) => need(&i.vis, &i.attrs, format!("union {}", i.ident)),
            Item::Struct(i) => {
                need(&i.vis, &i.attrs, format!("struct {}", i.ident));
                if matches!(i.vis, Visibility::Public(_))
                    && !is_excused(&i.attrs)
                    && let Fields::Named(fields) = &i.fields
                {
                    for field in &fields.named {
                        let name = field.ident.as_ref().map(ToString::to_string);
                        let what = format!("{}.{}", i.ident, name.unwrap_or_default());
                        need(&field.vis, &field.attrs, what);
                    }
                }
            }
            Item::Enum(i) => {
                need(&i.vis, &i.attrs, format!("enum {}", i.ident));
                if !is_excused(&i.attrs) {
                    for variant in &i.variants {
                        let what = format!("{}::{}", i.ident, variant.ident);
                        need(&i.vis, &variant.attrs, what);
                    }
                }
            }
            Item::Trait(i) => {
                need(&i.vis, &i.attrs, format!("trait {}", i.ident));
                for member in &i.items {
                    if let TraitItem::Fn(f) = member {
                        need(&i.vis, &f.attrs, format!("{}::{}", i.ident, f.sig.ident));
                    }
                }
            }
            Item::Impl(i) if i.trait_.is_none() && !is_excused(&i.attrs) => {
                for member in &i.items {
                    match member {
                        ImplItem::Fn(f) => need(&f.vis, &f.attrs, format!("fn {}", f.sig.ident)),
                        ImplItem::Const(c) => need(&c.vis, &c.attrs, format!("const {}", c.ident)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    for item in items_ {
        let Item::Mod(module) = item else { continue };
        if is_excused(&module.attrs) {
            continue;
        }
        let name = module.ident.to_string();
        let documented =
            has_docs(&module.attrs) || module.content.is_none() && module_has_docs(&name);
        if matches!(module.vis, Visibility::Public(_)) && !documented {
            found.push(format!("{inside}mod {name}"));
        }
        if let Some((_, content)) = &module.content {
            items(
                content,
                &format!("{inside}{name}::"),
                module_has_docs,
                found,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> syn::File {
        syn::parse_file(text).unwrap()
    }

    #[test]
    fn a_missing_forbid_is_found() {
        assert!(forbids_unsafe(&parse("#![forbid(unsafe_code)]")));
        assert!(!forbids_unsafe(&parse("#![deny(unsafe_code)]")));
        assert!(!forbids_unsafe(&parse(
            "// #![forbid(unsafe_code)]\nfn f() {}"
        )));
        assert!(!forbids_unsafe(&parse("#[forbid(unsafe_code)] fn f() {}")));
    }

    #[test]
    fn planted_unsafe_is_found() {
        for text in [
            "fn f() { unsafe { g() } }",
            "unsafe fn f() {}",
            "unsafe impl Send for X {}",
            "unsafe trait T {}",
            "extern \"C\" { fn f(); }",
            "static mut X: u32 = 0;",
            "#[unsafe(no_mangle)] fn f() {}",
            "m! { unsafe { g() } }",
            "mod inner { fn f() { let c = || unsafe { g() }; } }",
        ] {
            assert_eq!(unsafe_uses(&parse(text)).len(), 1, "{text}");
        }
        for text in [
            "/// unsafe\nfn f() { let s = \"unsafe { }\"; } // unsafe",
            "#![forbid(unsafe_code)]",
            "fn f() { assert!(x, \"unsafe\"); }",
        ] {
            assert!(unsafe_uses(&parse(text)).is_empty(), "{text}");
        }
    }

    #[test]
    fn planted_leftovers_are_found() {
        for text in [
            "fn f() { todo!() }",
            "fn f() { core::unimplemented!(\"x\") }",
            "fn f() { dbg!(1); }",
            "#[test] #[ignore] fn f() {}",
        ] {
            assert_eq!(leftovers(&parse(text)).len(), 1, "{text}");
        }
        assert!(leftovers(&parse("#[test] #[ignore = \"slow\"] fn f() {}")).is_empty());
        assert!(leftovers(&parse("// todo!()\nfn todo() {}")).is_empty());
    }

    #[test]
    fn planted_undocumented_items_are_found() {
        let no = |_: &str| false;
        for text in [
            "pub fn f() {}",
            "pub struct S;",
            "/// S\npub struct S { pub x: u32 }",
            "/// E\npub enum E { A }",
            "/// T\npub trait T { fn f(); }",
            "impl S { pub fn f() {} }",
            "impl S { pub const C: u32 = 0; }",
            "pub const C: u32 = 0;",
            "pub mod m;",
            "mod m { pub fn f() {} }",
            "///\npub fn f() {}",
        ] {
            assert_eq!(undocumented(&parse(text), &no).len(), 1, "{text}");
        }
        for text in [
            "/// F\npub fn f() {}",
            "fn f() {}",
            "pub(crate) fn f() {}",
            "impl T for S { fn f() {} }",
            "#[cfg(test)] mod m { pub fn f() {} }",
            "#[expect(missing_docs, reason = \"x\")] pub struct S { pub x: u32 }",
            "enum E { A }",
            "pub use a::b;",
        ] {
            assert!(undocumented(&parse(text), &no).is_empty(), "{text}");
        }
        assert!(undocumented(&parse("pub mod m;"), &|name| name == "m").is_empty());
    }
}
