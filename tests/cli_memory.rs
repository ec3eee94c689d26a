//! The program's flags about memory and about what is kept between runs.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn mmq(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmq"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("MMQ_ARG_") || name.starts_with("LLAMA_ARG_")) {
            command.env_remove(name);
        }
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the built-in model on the sample picture.
fn answer(more: &[&str]) -> (Value, String) {
    let image = root("models/nano/sample.png");
    let line =
        ["run", "--image", image.to_str().unwrap(), "-p", "Describe the picture.", "-s", "5", "-n", "12", "--json"];
    let output = mmq(&[&line[..], more].concat());
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    (serde_json::from_slice(&output.stdout).unwrap(), errors)
}

#[test]
fn a_kept_prompt_gives_the_same_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompt.session");
    let file = path.to_str().unwrap();
    let (plain, _) = answer(&[]);
    let (ro, _) = answer(&["--prompt-cache", file, "--prompt-cache-ro"]);
    assert!(!path.exists());
    let (first, _) = answer(&["--prompt-cache", file]);
    let size = fs::metadata(&path).unwrap().len();
    let (second, notes) = answer(&["--prompt-cache", file]);
    for run in [&ro, &first, &second] {
        assert_eq!(run["tokens"], plain["tokens"]);
    }
    assert_eq!((&first["n_prompt"], &second["n_prompt"]), (&plain["n_prompt"], &Value::from(1)));
    assert!(notes.contains("1 encoded picture found in memory"), "{notes}");
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    let before = fs::read(&path).unwrap();
    let (all, _) = answer(&["--prompt-cache", file, "--prompt-cache-all"]);
    assert_eq!(all["tokens"], plain["tokens"]);
    assert_ne!(fs::read(&path).unwrap(), before);
    let (after, _) = answer(&["--prompt-cache", file]);
    assert_eq!(after["tokens"], plain["tokens"]);

    // Another prompt has the picture in common.
    let image = root("models/nano/sample.png");
    let output = mmq(&[
        "run",
        "--image",
        image.to_str().unwrap(),
        "-p",
        "How many?",
        "-n",
        "1",
        "--json",
        "--prompt-cache",
        file,
    ]);
    let other: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(other["n_prompt"].as_u64() < other["n_image"].as_u64(), "{other}");

    let mut data = fs::read(&path).unwrap();
    let middle = data.len() / 2;
    data[middle] ^= 1;
    fs::write(&path, data).unwrap();
    let output = mmq(&["run", "-p", "Hi", "--prompt-cache", file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&format!("error: {file}: damaged")), "{}", text(&output.stderr));
    let output = mmq(&["run", "-p", "Hi", "--prompt-cache-all"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn kept_pictures_are_not_encoded_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pictures");
    let dir = dir.to_str().unwrap();
    let (first, notes) = answer(&["--image-cache", dir]);
    assert!(!notes.contains("found"), "{notes}");
    let (second, notes) = answer(&["--image-cache", dir]);
    assert!(notes.contains("1 encoded picture found in the folder of --image-cache"), "{notes}");
    assert_eq!((&second["tokens"], &second["n_image"]), (&first["tokens"], &first["n_image"]));
    let file = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "x").unwrap();
    let (third, notes) = answer(&["--image-cache", dir]);
    assert!(notes.contains(file.to_str().unwrap()) && notes.contains("encoded again"), "{notes}");
    assert_eq!(third["tokens"], first["tokens"]);
    answer(&["--image-cache", dir, "--image-cache-size", "1"]);
}

#[test]
fn plans_are_printed_and_kept() {
    let (model, mmproj) = (root("models/nano/nano.gguf"), root("models/nano/mmproj-nano.gguf"));
    let files = ["-m", model.to_str().unwrap(), "-mm", mmproj.to_str().unwrap()];
    let plan = |more: &[&str]| mmq(&[&["plan"], &files[..], more].concat());
    let output = plan(&["-c", "4096", "--json"]);
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&whole["n_ctx"], &whole["type_k"], &whole["load_mode"]), (&4096.into(), &"f16".into(), &"mmap".into()));
    let peak = whole["peak"].as_u64().unwrap();
    let table = text(&plan(&["-c", "256"]).stdout);
    assert!(table.contains("keys and values") && table.contains("flags: -c 256 -ub 512 -ctk f16"), "{table}");

    let budget = (peak - 1_000_000).to_string();
    let less: Value = serde_json::from_slice(&plan(&["-c", "4096", "--budget", &budget, "--json"]).stdout).unwrap();
    assert!(less["peak"].as_u64().unwrap() < peak && less["release_vision"] == true, "{less}");
    let output = plan(&["--budget", "9M"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(text(&output.stderr).contains("does not fit 9M: the least that it runs in is"), "{}", text(&output.stderr));
    assert_eq!(plan(&["--low-memory", "-lm", "repack"]).status.code(), Some(2));
    assert_eq!(plan(&["--image-size", "0x5"]).status.code(), Some(2));

    // Flags of a run are flags of its plan; pictures at hand count as they are.
    let picture = root("tests/fixtures/media/rgb.png");
    let picture = picture.to_str().unwrap();
    let at_hand = |more: &[&str]| {
        let output = plan(&[&["--image", picture, "--image", picture, "-c", "256", "--json"], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (seen, told) =
        (at_hand(&["-p", "Hi", "-n", "4", "--temp", "0", "-t", "2"]), at_hand(&["--image-size", "1024x768"]));
    let stated = plan(&["--images", "2", "--image-size", "24x17", "-c", "256", "--json"]);
    assert_eq!(seen, serde_json::from_slice::<Value>(&stated.stdout).unwrap());
    assert!(seen["parts"]["encode_scratch"].as_u64() < told["parts"]["encode_scratch"].as_u64());
    assert_eq!(plan(&["--image", "no such picture.png"]).status.code(), Some(1));
    assert_eq!(mmq(&["plan"]).status.code(), Some(2), "the built-in model has no plan");

    // A run within the budget says the same as one without.
    let run = |more: &[&str]| {
        let output =
            mmq(&[&["run"], &files[..], &["-p", "Hi", "--temp", "0", "-n", "4", "-c", "256", "--json"], more].concat());
        let errors = text(&output.stderr);
        assert!(output.status.success(), "{errors}");
        (serde_json::from_slice::<Value>(&output.stdout).unwrap(), errors)
    };
    let (free, _) = run(&[]);
    let (tight, notes) = run(&["--budget", &budget]);
    assert!(notes.contains("at most, with -c 256 -ub "), "{notes}");
    let (streaming, _) = run(&["--low-memory", "--power", "low"]);
    assert_eq!((&tight["tokens"], &streaming["tokens"]), (&free["tokens"], &free["tokens"]));
    assert_eq!(mmq(&["run", "-p", "Hi", "--budget", "1G"]).status.code(), Some(2), "the built-in model has no plan");
    let repacked = mmq(&[&["run"], &files[..], &["-p", "Hi", "--low-memory", "-lm", "repack"]].concat());
    assert_eq!(repacked.status.code(), Some(2));
    assert!(text(&repacked.stderr).contains("load-mode mmap alone"), "{}", text(&repacked.stderr));
}

#[test]
fn a_full_context_stops_or_goes_on() {
    let line = ["run", "-p", "Hi", "--ignore-eos", "-c", "64", "-n", "100", "--json"];
    let finish = |more: &[&str]| {
        let output = mmq(&[&line[..], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (answer["finish"].as_str().unwrap().to_owned(), answer["n_generated"].as_u64().unwrap())
    };
    for stop in [&[][..], &["--no-context-shift"], &["--context-shift", "--no-context-shift"]] {
        let (why, n) = finish(stop);
        assert!(why == "context" && n < 64, "{stop:?}: {why}, {n} tokens");
    }
    assert_eq!(finish(&["--context-shift"]), ("length".into(), 100));
}
