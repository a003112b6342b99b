//! The sources of the workspace's crates: what each file imports, and how large it is. Parsed by `syn`, so nested `use` counts too.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Item, UseTree,
    spanned::Spanned,
    visit::{self, Visit},
};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// A file, generated ones aside.
pub struct Source {
    /// From the workspace's root, with `/`.
    pub path: String,
    /// Its module's path in the crate; empty for the crate's root.
    pub module: Vec<String>,
    /// Whether it is compiled for tests only.
    pub is_test: bool,
    /// The paths that it names outside of its tests, as they are written.
    pub paths: Vec<Vec<String>>,
    pub lines: usize,
    /// Names and lines of functions outside of tests.
    pub functions: Vec<(String, usize)>,
    /// Columns of its comment lines.
    pub comments: Vec<usize>,
}

impl Source {
    /// The module of this crate that a path means, if it names one besides this file's own.
    pub fn resolve(&self, path: &[String], modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
        let mut target: Vec<String> = Vec::new();
        let mut rest = path;
        match path[0].as_str() {
            "crate" => rest = &path[1..],
            "super" | "self" => {
                target.clone_from(&self.module);
                while let Some((first, others)) = rest.split_first() {
                    match first.as_str() {
                        "super" => target.pop().map(drop)?,
                        "self" => {}
                        _ => break,
                    }
                    rest = others;
                }
            }
            _ => return None,
        }
        for segment in rest {
            target.push(segment.clone());
            if !modules.contains(&target) {
                target.pop();
                break;
            }
        }
        Some(target)
    }
}

/// How messages name a module: `engine::partition`.
pub fn module_name(crate_name: &str, module: &[String]) -> String {
    [&[crate_name.to_owned()], module].concat().join("::")
}

/// All files below a crate's `src`.
pub fn sources(crate_name: &str) -> Vec<Source> {
    let src = root().join(crate_name).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    files.sort();
    let mut tests_only = BTreeSet::new();
    let mut sources: Vec<Source> = files.iter().map(|file| read(file, &src, &mut tests_only)).collect();
    for source in &mut sources {
        source.is_test = (1..=source.module.len()).any(|length| tests_only.contains(&source.module[..length]));
    }
    sources
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a crate has sources") {
        let path = entry.expect("the directory is readable").path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "generated") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(file: &Path, src: &Path, tests_only: &mut BTreeSet<Vec<String>>) -> Source {
    let text = fs::read_to_string(file).expect("a source is text");
    let below = file.strip_prefix(src).expect("it lies below").with_extension("");
    let mut module: Vec<String> =
        below.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut reader = Reader { module: module.clone(), paths: Vec::new(), functions: Vec::new(), tests_only };
    parsed.items.iter().for_each(|item| reader.item(item));
    let Reader { paths, functions, .. } = reader;
    let comments = text.lines().map(str::trim_end).filter(|line| line.trim_start().starts_with("//"));
    Source {
        path: file.strip_prefix(root()).expect("it lies in the workspace").to_string_lossy().replace('\\', "/"),
        module,
        is_test: false,
        paths,
        lines: text.lines().count(),
        functions,
        comments: comments.map(|line| line.chars().count()).collect(),
    }
}

struct Reader<'a> {
    module: Vec<String>,
    paths: Vec<Vec<String>>,
    functions: Vec<(String, usize)>,
    tests_only: &'a mut BTreeSet<Vec<String>>,
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl Reader<'_> {
    fn item(&mut self, item: &Item) {
        let for_tests = is_for_tests(attributes(item));
        match item {
            Item::Mod(inner) if inner.content.is_none() => {
                if for_tests {
                    let name = inner.ident.to_string();
                    self.tests_only.insert([&self.module[..], &[name]].concat());
                }
            }
            _ if for_tests => {}
            Item::Use(import) => self.tree(&import.tree, &mut Vec::new()),
            other => self.visit_item(other),
        }
    }

    fn tree(&mut self, tree: &UseTree, path: &mut Vec<String>) {
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.tree(&inner.tree, path);
                path.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, path)),
            UseTree::Name(name) => self.import(path, &name.ident.to_string()),
            UseTree::Rename(rename) => self.import(path, &rename.ident.to_string()),
            UseTree::Glob(_) => self.paths.push(path.clone()),
        }
    }

    fn import(&mut self, path: &[String], name: &str) {
        let mut path = path.to_vec();
        if name != "self" {
            path.push(name.to_owned());
        }
        self.paths.push(path);
    }

    /// Paths in the tokens of a macro's call, which `syn` does not parse.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    self.tokens(group.stream());
                }
                _ => self.end(&mut path),
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        let ended = std::mem::take(path);
        if ended.len() > 1 {
            self.paths.push(ended);
        }
    }

    fn function(&mut self, name: String, body: &syn::Block) {
        if !is_table(body) {
            self.functions.push((name, lines(body)));
        }
    }
}

/// Lines of a table's arm, and of a table besides its `match`.
const LINES_PER_ARM_MAX: usize = 20;
const LINES_BESIDE_MAX: usize = 10;

fn lines(of: &impl Spanned) -> usize {
    let span = of.span();
    span.end().line - span.start().line + 1
}

/// Whether a function is little more than one `match` with short arms. Such a table may be long.
fn is_table(body: &syn::Block) -> bool {
    let mut longest = Longest(None);
    longest.visit_block(body);
    longest.0.is_some_and(|found| {
        lines(body) - lines(found) <= LINES_BESIDE_MAX && found.arms.iter().all(|arm| lines(arm) <= LINES_PER_ARM_MAX)
    })
}

/// The longest `match`.
struct Longest<'ast>(Option<&'ast syn::ExprMatch>);

impl<'ast> Visit<'ast> for Longest<'ast> {
    fn visit_expr_match(&mut self, found: &'ast syn::ExprMatch) {
        if self.0.is_none_or(|longest| lines(found) > lines(longest)) {
            self.0 = Some(found);
        }
        visit::visit_expr_match(self, found);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if is_for_tests(attributes(item)) {
            return;
        }
        if let Item::Use(import) = item {
            return self.tree(&import.tree, &mut Vec::new());
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            self.function(function.sig.ident.to_string(), &function.block);
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(function.sig.ident.to_string(), &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.function(function.sig.ident.to_string(), block);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}
