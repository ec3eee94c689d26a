//! House rules that no compiler checks: which layer may know which, twins of kernels, file length, what may not be written.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders of `src/` with the folders that each may use, besides itself and `error`.
const MAY_USE: &[(&str, &[&str])] = &[
    ("gguf", &[]),
    ("tensor", &["gguf"]),
    ("device", &[]),
    ("media", &[]),
    ("text", &["gguf"]),
    ("ops", &["device", "tensor"]),
    ("blocks", &["ops", "device", "tensor", "gguf", "media"]),
    ("architectures", &["blocks", "ops", "device", "tensor", "gguf", "media"]),
    ("quantize", &["gguf"]),
    ("convert", &["gguf", "media", "quantize", "text"]),
    ("pipelines", &["quantize", "architectures", "blocks", "ops", "device", "tensor", "gguf", "media", "text"]),
    ("ffi", &["pipelines", "gguf", "media", "text"]),
    ("cli", &["pipelines", "quantize", "convert", "gguf", "media", "text", "architectures"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(String, String)> {
    let files = rust_files(&root().join("src")).into_iter().chain(rust_files(&root().join("kernels/src")));
    let named = files.map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
        (name, fs::read_to_string(&path).unwrap())
    });
    let named: Vec<_> = named.collect();
    assert!(named.len() > 30, "the walk found {} files only", named.len());
    named
}

/// The part of a file that is no test, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, line)| (i + 1, line))
}

fn report(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn layers_know_only_lower_ones() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let Some(layer) = name.strip_prefix("src/").and_then(|rest| rest.split_once('/')).map(|(layer, _)| layer)
        else {
            continue;
        };
        let Some((_, allowed)) = MAY_USE.iter().find(|(l, _)| *l == layer) else {
            faults.push(format!("{name}: folder {layer} has no line in the table of layers"));
            continue;
        };
        for (line, code) in code(&text) {
            for used in code.split("crate::").skip(1) {
                let module: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let is_layer = MAY_USE.iter().any(|(l, _)| *l == module);
                if is_layer && module != layer && !allowed.contains(&module.as_str()) {
                    faults.push(format!("{name}:{line}: {layer} may not use {module}"));
                }
            }
        }
    }
    report(faults);
}

#[test]
fn kernels_import_no_model() {
    let faults = sources().into_iter().filter(|(name, text)| name.starts_with("kernels/") && text.contains("mmq::"));
    report(faults.map(|(name, _)| format!("{name}: names the package above it")).collect());
}

#[test]
fn every_simd_file_has_a_scalar_twin() {
    let names: Vec<String> = sources().into_iter().map(|(name, _)| name).collect();
    let mut faults = Vec::new();
    let simd = |n: &&String| n.starts_with("kernels/src/x86/") || n.starts_with("kernels/src/arm/");
    for name in names.iter().filter(simd).filter(|n| !n.ends_with("mod.rs")) {
        let twin = format!("kernels/src/scalar/{}", name.rsplit('/').next().unwrap());
        if !names.contains(&twin) {
            faults.push(format!("{name}: no {twin}"));
        }
    }
    report(faults);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        if lines > 1000 {
            faults.push(format!("{name}: {lines} lines"));
        }
        if !text.starts_with("//! ") {
            faults.push(format!("{name}: opens without saying what it is"));
        }
    }
    report(faults);
}

#[test]
fn nothing_is_left_undone() {
    let words = ["todo!", "unimplemented!", "dbg!", ".unwrap()", "TODO", "FIXME"];
    let mut faults = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !name.ends_with("tests.rs")) {
        for (line, code) in code(&text) {
            faults.extend(words.iter().filter(|w| code.contains(**w)).map(|w| format!("{name}:{line}: {w}")));
        }
    }
    report(faults);
}

#[test]
fn unsafe_stays_where_it_is_allowed() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let allowed = name.starts_with("kernels/") || name == "src/gguf/mmap.rs" || name.starts_with("src/ffi/");
        for (line, code) in code(&text) {
            if !allowed && (code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("allow(unsafe")) {
                faults.push(format!("{name}:{line}: {}", code.trim()));
            }
        }
    }
    report(faults);
}
