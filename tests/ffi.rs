//! The C interface from C: header, example and soak compile without a warning as C and as C++ and run; the shared library
//! exports the functions of the header and nothing else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the command prints; it must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// The folder of the static and the shared library, built as a phone has it: without the program and its dependencies.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it lies in the target folder");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args(["rustc", "--quiet", "--lib", "--crate-type", "staticlib,cdylib"]);
        cargo.args(["--no-default-features", "--features", "ffi", "--target-dir"]).arg(target);
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        if profile == "release" {
            cargo.arg("--release");
        }
        run(&mut cargo);
        target.join(profile)
    })
}

/// Compiles a program of `examples/c`, with the static library or with the shared one.
fn compile(compiler: &str, language: &[&str], source: &str, shared: bool) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{source}-{compiler}"));
    let mut cc = Command::new(compiler);
    cc.args(language).args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-D_POSIX_C_SOURCE=200809L", "-I"]);
    cc.arg(root().join("src/ffi")).arg(root().join("examples/c").join(source));
    if shared {
        cc.args(["-x", "none", "-L"]).arg(libraries()).arg("-lmmq");
        cc.arg(format!("-Wl,-rpath,{}", libraries().display()));
    } else {
        cc.args(["-x", "none"]).arg(libraries().join("libmmq.a"));
    }
    run(cc.args(["-lpthread", "-lm", "-ldl", "-o"]).arg(&program));
    program
}

const C: &[&str] = &["-std=c99", "-x", "c"];
const CPP: &[&str] = &["-std=c++11", "-x", "c++"];

fn on_sample(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).args([
        "models/nano/nano.gguf",
        "models/nano/mmproj-nano.gguf",
        "models/nano/sample.png",
    ]);
    command
}

#[test]
fn the_header_is_c89() {
    let check =
        ["-std=c89", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wstrict-prototypes", "-fsyntax-only", "-x", "c"];
    run(Command::new("cc").args(check).arg(root().join("src/ffi/mmq.h")));
}

#[test]
fn the_example_describes_a_picture() {
    for (compiler, language, shared) in [("cc", C, false), ("c++", CPP, true)] {
        let printed = run(&mut on_sample(&compile(compiler, language, "describe.c", shared)));
        let mut lines = printed.lines();
        let mut next = |starts: &str| {
            let line = lines.next().unwrap_or_default();
            assert!(line.starts_with(starts), "expected {starts:?}, got {line:?} in\n{printed}");
        };
        next("LLaMA text model");
        next("a picture of 640 x 480 takes ");
        next("a red star at the top left, a white 4 in the center and a blue 5 at the bottom.");
        next("  (");
        next("a blue square in the center.");
        next("  (");
        next("embedding: ");
        next("an answer without end: cancelled");
        next("status 2: no such file.gguf: ");
        assert_eq!(lines.next(), None, "{printed}");
    }
}

#[test]
fn sessions_that_are_stopped_anywhere_leave_nothing_behind() {
    let printed = run(on_sample(&compile("cc", C, "soak.c", false)).args(["160", "3"]));
    let counts =
        printed.lines().filter_map(|line| line.strip_prefix("stopped ")?.rsplit(' ').next()?.parse::<usize>().ok());
    let counts: Vec<usize> = counts.collect();
    assert_eq!((counts.len(), counts.iter().sum()), (6, 160), "{printed}");
    let whole = counts[5];
    assert!((1..156).contains(&whole), "{whole} of 160 were not stopped:\n{printed}");
}

#[test]
fn the_shared_library_exports_the_header_and_nothing_else() {
    let library = libraries().join(if cfg!(target_os = "macos") { "libmmq.dylib" } else { "libmmq.so" });
    let dynamic: &[&str] = if cfg!(target_os = "macos") { &["-gU"] } else { &["-D", "--defined-only"] };
    let table = run(Command::new("nm").args(dynamic.iter().map(OsStr::new)).arg(library));
    let exported: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(|name| name.trim_start_matches('_'))
        .collect();
    let header = include_str!("../src/ffi/mmq.h");
    let code = header.split("#define MMQ_ABI_VERSION").nth(1).expect("the header has a version");
    let functions = code.split(['*', ' ', '\n']).filter_map(|word| Some(word.split_once('(')?.0));
    let declared: BTreeSet<&str> = functions.filter(|name| name.starts_with("mmq_") && !name.ends_with(')')).collect();
    assert!(declared.len() > 30, "{declared:?}");
    assert_eq!(exported, declared);
}
