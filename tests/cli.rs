//! The program as its users meet it: what it prints, where, and how it ends, on the recorded tiny models.
#![cfg(feature = "cli")]

use mmq::gguf::Gguf;
use mmq::gguf::Writer;
use serde_json::Value as Json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    path.to_str().expect("the checkout has a UTF-8 path").to_owned()
}

fn picture() -> String {
    fixture("media/rgb.png")
}

/// The program with arguments and without the variables that it listens to.
fn mmq<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmq"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("MMQ_ARG_") || name.starts_with("LLAMA_ARG_")) {
            command.env_remove(name);
        }
    }
    command
}

/// What came of a run.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{stderr}");
        let stdout = String::from_utf8(output.stdout).expect("standard output is UTF-8");
        Ran { code: output.status.code(), stdout, stderr }
    }

    /// The answer of a run that went well.
    #[track_caller]
    fn answer(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// The message of a run that failed with `code`; nothing is on standard output.
    #[track_caller]
    fn error(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        let error = self.stderr.lines().find_map(|line| line.strip_prefix("error: "));
        error.unwrap_or_else(|| panic!("no error in: {}", self.stderr)).to_owned()
    }
}

fn ran(mut command: Command) -> Ran {
    Ran::of(command.output().expect("the program starts"))
}

fn with_stdin(mut command: Command, input: &[u8]) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that does not read is free to close its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    Ran::of(child.wait_with_output().unwrap())
}

/// `mmq run` on a model that sees, greedy, eight tokens.
fn run(args: &[&str]) -> Command {
    let model = fixture("llava-mlp.gguf");
    mmq(["run", "-m", &model, "--temp", "0", "-n", "8"].iter().chain(args))
}

fn json(args: &[&str]) -> Json {
    let text = ran(run(&[args, &["--json"]].concat())).answer();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// Part of a model file as a file of its own.
fn part(from: &Gguf, to: &Path, architecture: &str, key: impl Fn(&str) -> bool, tensor: impl Fn(&str) -> bool) {
    let mut writer = Writer::new();
    writer.set("general.architecture", architecture);
    for (name, value) in from.metadata().iter().filter(|(name, _)| key(name)) {
        writer.set(name, value.clone());
    }
    for info in from.tensors().iter().filter(|info| tensor(&info.name)) {
        writer.tensor(&info.name, info.dtype, &info.shape).unwrap();
    }
    writer.write(to, |info, sink| sink.put(&from.bytes(from.tensor(&info.name).unwrap()))).unwrap();
}

/// A folder with `text.gguf`, and its vision part under each of the names.
fn pair(mmproj: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let whole = Gguf::open(fixture("llava-mlp.gguf")).unwrap();
    let sees = |name: &str| name.starts_with("v.") || name.starts_with("mm.");
    let is_text = |key: &str| key.starts_with("llama.") || key.starts_with("tokenizer.");
    part(&whole, &folder.path().join("text.gguf"), "llama", is_text, |name| !sees(name) && !name.starts_with("ref."));
    for name in mmproj {
        part(&whole, &folder.path().join(name), "clip", |key| key.starts_with("clip."), sees);
    }
    folder
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn the_answer_is_on_stdout_and_the_rest_on_stderr() {
    let picture = picture();
    let ran = ran(run(&["--image", &picture, "-p", "What is this?"]));
    assert!(ran.stdout.len() > 1 && ran.stdout.ends_with('\n'), "{:?}", ran.stdout);
    for word in ["load", "image decode", "encode", "prefill", "generate", "tokens/s", "first token"] {
        assert!(ran.stderr.contains(word) && !ran.stdout.contains(word), "{word}: {}", ran.stderr);
    }
    let answer = ran.answer();
    let quiet = self::ran(run(&["--image", &picture, "-p", "What is this?", "-q"]));
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.answer(), answer);
    let plain = self::ran(run(&["--image", &picture, "-p", "What is this?", "--no-show-timings"]));
    assert_eq!(plain.stderr, "");
}

#[test]
fn json_is_one_object_with_what_a_program_may_read() {
    let picture = picture();
    let args = ["--image", &picture, "-p", "What is this?", "-s", "7", "-t", "2"];
    let json = json(&args);
    let answer = ran(run(&args)).answer();
    assert_eq!(json["text"].as_str(), answer.strip_suffix('\n'));
    assert_eq!(json["finish"], "length");
    assert_eq!(json["tokens"].as_array().map(Vec::len), Some(8));
    assert_eq!((&json["seed"], &json["threads"]), (&Json::from(7), &Json::from(2)));
    assert_eq!((&json["n_generated"], &json["n_image"], &json["n_ctx"]), (&8.into(), &16.into(), &512.into()));
    assert!(json["n_prompt"].as_u64() > Some(16));
    assert!(json["model"].as_str().is_some_and(|name| name.ends_with("llava-mlp.gguf")));
    assert_eq!(json["template"], "vicuna_v1");
    for time in ["load_ms", "image_decode_ms", "encode_ms", "prefill_ms", "generate_ms", "first_token_ms"] {
        assert!(json["timings"][time].as_f64().is_some_and(|ms| ms > 0.0), "{time}: {json}");
    }
    for rate in ["prefill_tokens_per_s", "generate_tokens_per_s"] {
        assert!(json["timings"][rate].as_f64().is_some_and(|rate| rate > 0.0), "{rate}: {json}");
    }
}

#[test]
fn equal_runs_give_equal_answers() {
    let picture = picture();
    let args = ["--image", &picture, "-p", "Well?", "--ignore-eos", "-n", "40"];
    let greedy = ran(run(&args)).answer();
    assert_eq!(ran(run(&[&args[..], &["-t", "1", "-s", "3"]].concat())).answer(), greedy);
    let seeded = |seed| ran(run(&[&args[..], &["--temp", "1", "-s", seed]].concat())).answer();
    assert_eq!(seeded("42"), seeded("42"));
    assert_ne!(seeded("42"), seeded("43"));
    // A batch of one token at a time is the same arithmetic.
    assert_eq!(ran(run(&[&args[..], &["-ub", "1"]].concat())).answer(), greedy);
}

#[test]
fn command_lines_of_llama_cpp_run_unchanged() {
    let folder = pair(&["vision.gguf"]);
    let (model, mmproj, log) = (path(&folder, "text.gguf"), path(&folder, "vision.gguf"), path(&folder, "x.log"));
    let picture = picture();
    let mtmd = mmq([
        "run",
        "-m",
        &model,
        "--mmproj",
        &mmproj,
        "--image",
        &picture,
        "-p",
        "What is this?",
        "-ngl",
        "99",
        "-fa",
        "on",
        "-n",
        "4",
        "--temp",
        "0.2",
        "--no-warmup",
        "--jinja",
        "--no-mmproj-offload",
        "-lv",
        "1",
        "-t",
        "2",
        "-tb",
        "2",
    ]);
    let ran_mtmd = ran(mtmd);
    assert!(ran_mtmd.stderr.contains("note: -ngl has no effect"), "{}", ran_mtmd.stderr);
    ran_mtmd.answer();

    let cli = [
        "run",
        "-m",
        &model,
        "-mm",
        &mmproj,
        "-ngl",
        "all",
        "-fa",
        "-ub",
        "512",
        "-b",
        "2048",
        "-ctk",
        "f16",
        "-ctv",
        "f32",
        "-sys",
        "Be brief.",
        "-st",
        "--no-mmap",
        "--mlock",
        "-lv",
        "1",
        "--log-file",
        &log,
        "--color",
        "on",
        "--seed",
        "1",
        "--top-k",
        "20",
        "--top-p",
        "0.9",
        "--min-p",
        "0.1",
        "--repeat-penalty",
        "1.1",
        "--repeat-last-n",
        "-1",
        "--predict",
        "4",
        "-c",
        "256",
        "--keep",
        "0",
        "-e",
        "--simple-io",
        "-C",
        "ff",
        "--prio",
        "2",
        "--image-min-tokens",
        "16",
        "--no-context-shift",
        "--perf",
        "-v",
        "-p",
        "- a list",
    ];
    let ran_cli = ran(mmq(cli));
    for flag in ["-ngl", "--no-mmap", "--mlock", "--log-file", "-C", "--image-min-tokens"] {
        assert!(ran_cli.stderr.contains(&format!("note: {flag} has no effect: ")), "{flag}: {}", ran_cli.stderr);
    }
    for flag in ["-fa ", "-lv ", "--color ", "--prio "] {
        assert!(!ran_cli.stderr.contains(&format!("note: {flag}")), "{flag}: {}", ran_cli.stderr);
    }
    ran_cli.answer();
    assert!(!Path::new(&log).exists());
    let quiet = ran(mmq(cli.iter().chain(&["-q"])));
    assert_eq!(quiet.stderr, "");

    // Without a chat template the prompt is what the model reads.
    let bare = json(&["-no-cnv", "-p", "abc"]);
    assert!(bare["n_prompt"].as_u64() < Some(8), "{bare}");
}

#[test]
fn what_mmq_cannot_do_yet_is_said_by_name() {
    for args in [
        ["--grammar", "root ::= \"a\""],
        ["--grammar-file", "g"],
        ["-j", "{}"],
        ["--json-schema-file", "f"],
        ["--lora", "a.gguf"],
        ["--control-vector", "a.gguf"],
        ["-hf", "user/repo"],
        ["-mu", "https://example.com/a"],
        ["--audio", "a.wav"],
        ["--video", "a.mp4"],
        ["--override-kv", "a=int:1"],
        ["--rope-freq-base", "1"],
        ["--chat-template-kwargs", "{}"],
    ] {
        let error = ran(run(&[&args[..], &["-p", "hi"]].concat())).error(2);
        assert!(error.starts_with(&format!("{} is not supported yet: ", args[0])), "{error}");
    }
    let error = ran(run(&["-p", "hi", "--special"])).error(2);
    assert!(error.starts_with("--special is not supported yet"), "{error}");
}

#[test]
fn flags_come_from_the_environment_too() {
    let model = fixture("llava-mlp.gguf");
    let tokens = |command: &mut Command| {
        let text = Ran::of(command.output().unwrap()).answer();
        serde_json::from_str::<Json>(&text).unwrap()["n_generated"].as_u64().unwrap()
    };
    let args = ["run", "-p", "hi", "--temp", "0", "--ignore-eos", "--json"];
    let mut command = mmq(args);
    command.env("LLAMA_ARG_MODEL", &model).env("LLAMA_ARG_N_PREDICT", "3").env("LLAMA_ARG_THREADS", "1");
    assert_eq!(tokens(&mut command), 3);
    assert_eq!(tokens(command.env("MMQ_ARG_N_PREDICT", "5")), 5);
    assert_eq!(tokens(command.arg("-n").arg("2")), 2);
    // An empty variable is none.
    assert_eq!(
        tokens(mmq(args).env("MMQ_ARG_MODEL", &model).env("MMQ_ARG_N_PREDICT", "").env("LLAMA_ARG_N_PREDICT", "4")),
        4
    );

    let error =
        Ran::of(mmq(args).env("MMQ_ARG_MODEL", &model).env("LLAMA_ARG_CTX_SIZE", "x").output().unwrap()).error(2);
    assert!(error.contains("--ctx-size"), "{error}");
    let error = Ran::of(mmq(args).env("MMQ_ARG_MODEL", "no-such.gguf").output().unwrap()).error(1);
    assert!(error.starts_with("no-such.gguf: "), "{error}");
    // A flag outweighs the environment.
    let mut command = run(&["--no-mmproj", "-p", "hi"]);
    Ran::of(command.env("MMQ_ARG_MMPROJ", "no-such.gguf").output().unwrap()).answer();
}

#[test]
fn pictures_from_everywhere() {
    let picture = picture();
    let bytes = std::fs::read(&picture).unwrap();
    let expected = ran(run(&["--image", &picture, "-p", "What?"])).answer();
    assert_eq!(with_stdin(run(&["--image", "-", "-p", "What?"]), &bytes).answer(), expected);
    let url: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
    assert_eq!(ran(run(&["--image", &format!("data:image/png,{url}"), "-p", "What?"])).answer(), expected);
    let folder = tempfile::tempdir().unwrap();
    let odd = path(&folder, "a cat, 猫.png");
    std::fs::copy(&picture, &odd).unwrap();
    assert_eq!(ran(run(&["--image", &odd, "-p", "What?"])).answer(), expected);

    let error = with_stdin(run(&["--image", "-,-", "-p", "What?"]), &bytes).error(2);
    assert!(error.contains("standard input"), "{error}");
    let error = with_stdin(run(&["--image", "-", "-f", "-"]), &bytes).error(2);
    assert!(error.contains("standard input"), "{error}");
    let error = with_stdin(run(&["--image", "-"]), &bytes).error(2);
    assert!(error.contains("no prompt"), "{error}");
    let error = ran(run(&["--image", "https://example.com/cat.png", "-p", "What?"])).error(2);
    assert!(error.contains("https://example.com/cat.png"), "{error}");
}

#[test]
fn prompts_from_everywhere() {
    let expected = ran(run(&["-p", "first\nsecond"])).answer();
    assert_eq!(ran(run(&["-p", r"first\nsecond"])).answer(), expected);
    let n_prompt = |args: &[&str]| json(args)["n_prompt"].as_u64();
    assert_eq!(n_prompt(&["-p", r"first\nsecond"]), n_prompt(&["-p", "first\nsecond"]));
    assert!(n_prompt(&["-p", r"first\nsecond", "--no-escape"]) > n_prompt(&["-p", "first\nsecond"]));
    for text in ["first\nsecond", "first\nsecond\n", "first\nsecond\r\n"] {
        assert_eq!(with_stdin(run(&[]), text.as_bytes()).answer(), expected);
        assert_eq!(with_stdin(run(&["-f", "-"]), text.as_bytes()).answer(), expected);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(ran(run(&["-f", file.path().to_str().unwrap()])).answer(), expected);
    }
    assert!(ran(run(&["-p", ""])).error(2).contains("prompt is empty"));
    assert!(with_stdin(run(&[]), b"\n").error(2).contains("prompt is empty"));
    let error = with_stdin(run(&[]), b"caf\xe9").error(1);
    assert!(error.contains("standard input") && error.contains("UTF-8"), "{error}");
    // What looks like a flag is still a prompt.
    ran(run(&["-p", "-ngl", "-sys", "--json"])).answer();
    ran(run(&["-p", "日本語 🐱 \u{301}"])).answer();
}

#[test]
fn pictures_take_their_places() {
    let (first, second) = (picture(), fixture("media/grey.png"));
    let both = format!("{first},{second}");
    let tokens = |args: &[&str]| json(args)["tokens"].clone();
    let in_front = tokens(&["--image", &first, "--image", &second, "-p", "hi"]);
    assert_eq!(tokens(&["--image", &both, "-p", "<image><__media__>hi"]), in_front);
    assert_eq!(json(&["--image", &both, "-p", "a <image> b <image> c"])["n_image"], 32);

    for (n, prompt) in [(2, "<image> and <image>"), (3, "<image><__media__><image>")] {
        let error = ran(run(&["--image", &first, "-p", prompt])).error(1);
        assert!(error.contains(&format!("{n} places")) && error.contains("but 1 given"), "{error}");
    }
    let error = ran(run(&["-p", "<image>?"])).error(1);
    assert!(error.contains("1 place ") && error.contains("but 0 given"), "{error}");
    let error = ran(run(&["--image", &both, "-p", "<image>?"])).error(1);
    assert!(error.contains("1 place ") && error.contains("but 2 given"), "{error}");
}

#[test]
fn pictures_take_as_many_tokens_as_they_may() {
    let picture = picture();
    let counts = |args: &[&str]| {
        let json = json(&[&["--image", &picture, "-p", "What?"], args].concat());
        (json["n_image"].as_u64().unwrap(), json["n_image_all"].as_u64().unwrap(), json["text"].clone())
    };
    let all = counts(&[]);
    assert_eq!((all.0, all.1), (16, 16));
    // As many as there are, or more, change nothing.
    assert_eq!(counts(&["--image-tokens", "16"]), all);
    assert_eq!(counts(&["--image-tokens", "1000", "--image-tokens-by", "downsample"]), all);
    assert_eq!(counts(&["--image-tokens", "7"]).0, 7);
    assert_eq!(counts(&["--image-tokens", "7", "--image-tokens-by", "saliency"]), counts(&["--image-tokens", "7"]));
    assert_eq!(counts(&["--image-tokens", "7", "--image-tokens-by", "downsample"]).0, 6);
    // Each picture may take that many.
    let both = format!("{picture},{picture}");
    let two = counts(&["--image", &both, "--image-tokens", "5"]);
    assert_eq!((two.0, two.1), (15, 48));

    let shown = ran(run(&["--image", &picture, "-p", "What?", "--image-tokens", "5"])).stderr;
    assert!(shown.contains("image tokens: 5 kept of 16"), "{shown}");
    let shown = ran(run(&["--image", &picture, "-p", "What?"])).stderr;
    assert!(!shown.contains("kept of"), "{shown}");
    for wrong in ["0", "-1", "half", ""] {
        let error = ran(run(&["--image", &picture, "-p", "What?", "--image-tokens", wrong])).error(2);
        assert!(error.contains("--image-tokens"), "{error}");
    }
    let error = ran(run(&["-p", "What?", "--image-tokens", "5", "--image-tokens-by", "luck"])).error(2);
    assert!(error.contains("luck") && error.contains("saliency"), "{error}");
    ran(run(&["-p", "What?", "--image-tokens-by", "downsample"])).error(2);
}

#[test]
fn the_mmproj_beside_a_model_is_found() {
    let picture = picture();
    let answer = |folder: &tempfile::TempDir, more: &[&str]| {
        let model = path(folder, "text.gguf");
        let args = ["run", "-m", &model, "--temp", "0", "-n", "4", "--image", &picture, "-p", "hi"];
        ran(mmq(args.iter().chain(more)))
    };
    let one = pair(&["mmproj-text-f32.gguf"]);
    let found = answer(&one, &[]);
    assert!(found.stderr.contains("note: using ") && found.stderr.contains("mmproj-text-f32.gguf"), "{}", found.stderr);
    found.answer();
    let error = answer(&one, &["--no-mmproj"]).error(2);
    assert!(error.contains("--mmproj"), "{error}");

    let several = pair(&["mmproj-a.gguf", "mmproj-b.gguf"]);
    let error = answer(&several, &[]).error(2);
    assert!(error.contains("mmproj-a.gguf") && error.contains("mmproj-b.gguf"), "{error}");
    answer(&several, &["--mmproj", &path(&several, "mmproj-b.gguf")]).answer();
    let error = answer(&pair(&[]), &[]).error(2);
    assert!(error.contains("text.gguf") && error.contains("--mmproj"), "{error}");
    // Without a picture nobody looks for one.
    let model = path(&several, "text.gguf");
    ran(mmq(["run", "-m", &model, "-n", "1", "-p", "hi"])).answer();
}

#[test]
fn files_that_do_not_fit() {
    let folder = pair(&["mmproj.gguf"]);
    let (text, mmproj, other) = (path(&folder, "text.gguf"), path(&folder, "mmproj.gguf"), fixture("llama-gqa.gguf"));
    let picture = picture();
    let empty = path(&folder, "empty.gguf");
    std::fs::write(&empty, "").unwrap();
    let cut = path(&folder, "cut.gguf");
    std::fs::write(&cut, &std::fs::read(&text).unwrap()[..20_000]).unwrap();
    let here = folder.path().to_str().unwrap().to_owned();
    let cases: &[(&[&str], &[&str])] = &[
        (&["-m", "no.gguf"], &["no.gguf"]),
        (&["-m", &here], &[&here, "folder"]),
        (&["-m", &empty], &[&empty, "empty"]),
        (&["-m", &cut], &[&cut, "cut short"]),
        (&["-m", &picture], &[&picture, "PNG"]),
        (&["-m", &mmproj], &[&mmproj, "clip", "text model"]),
        (&["-m", &text, "--mmproj", &text], &[&text, "llama", "mmproj"]),
        (&["-m", &other, "--mmproj", &mmproj], &[&other, &mmproj, "32", "48"]),
        (&["-m", &text, "--mmproj", "no.gguf"], &["no.gguf"]),
        (&["-m", &text, "--image", "no.png"], &["no.png"]),
        (&["-m", &text, "--image", &text], &[&text, "GGUF"]),
        (&["-m", &text, "--image", &empty], &[&empty, "empty"]),
    ];
    for (args, words) in cases {
        let error = ran(mmq(["run", "-p", "hi"].iter().chain(*args))).error(1);
        assert!(words.iter().all(|word| error.contains(word)), "{args:?}: {error}");
    }
    let error = ran(mmq(["run", "-p", "hi", "--mmproj", &mmproj])).error(2);
    assert!(error.contains("-m"), "{error}");
}

#[test]
fn wrong_values_are_refused_with_the_flag_s_name() {
    for (flag, name, value) in [
        ("-t", "--threads", "abc"),
        ("-t", "--threads", "-2"),
        ("-b", "--batch-size", "0"),
        ("-ub", "--ubatch-size", "0"),
        ("-c", "--ctx-size", "-1"),
        ("-c", "--ctx-size", "99999999999999999999"),
        ("-n", "--predict", "-3"),
        ("-s", "--seed", "4294967296"),
        ("--temp", "--temp", "nan"),
        ("--temp", "--temp", "inf"),
        ("--top-k", "--top-k", "1.5"),
        ("--top-p", "--top-p", "1.1"),
        ("--min-p", "--min-p", "-0.1"),
        ("--typical", "--typical", "2"),
        ("--dry-multiplier", "--dry-multiplier", "-1"),
        ("--repeat-penalty", "--repeat-penalty", "0"),
        ("--repeat-last-n", "--repeat-last-n", "-2"),
        ("--mirostat", "--mirostat", "3"),
        ("--samplers", "--samplers", "top_k;nope"),
        ("--sampling-seq", "--sampling-seq", "kz"),
        ("--logit-bias", "--logit-bias", "5"),
        ("--logit-bias", "--logit-bias", "48+1"),
        ("-ctk", "--cache-type-k", "q9"),
        ("-ctv", "--cache-type-v", "iq4_nl"),
        ("--image-fit", "--image-fit", "x"),
        ("--image-filter", "--image-filter", "x"),
        ("--background", "--background", "x"),
        ("--chat-template", "chat template", "nope"),
    ] {
        let error = ran(run(&["-p", "hi", flag, value])).error(2);
        assert!(error.contains(name), "{flag} {value}: {error}");
    }
    let error = ran(run(&["-p", "hi", "--chat-template-file", "no.jinja"])).error(1);
    assert!(error.contains("no.jinja"), "{error}");
    let error = ran(run(&["-p", "hi", "-f", "x"])).error(2);
    assert!(error.contains("--prompt") && error.contains("--file"), "{error}");
    assert!(ran(run(&["-p", "hi", "--nope"])).error(2).contains("--nope"));
    assert!(ran(run(&["-p", "hi", "-ngl"])).error(2).contains("-ngl"));
    // Off, or greedy, as in llama.cpp.
    for args in [["--top-k", "-5"], ["--temp", "-1"], ["--repeat-last-n", "0"], ["-t", "0"], ["-n", "-2"]] {
        ran(run(&[&["-p", "hi", "--ignore-eos", "-c", "200"][..], &args[..]].concat())).answer();
    }
}

#[test]
fn templates_and_samplers_are_chosen() {
    assert_eq!(json(&["-p", "hi", "--chat-template", "chatml"])["template"], "chatml");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    let own = json(&["-p", "abc", "--chat-template-file", file.path().to_str().unwrap()]);
    assert_eq!(own["template"], "jinja");
    assert_eq!(own["tokens"], json(&["-p", "abc", "-no-cnv"])["tokens"]);
    std::fs::write(file.path(), "{{ raise_exception('\u{1b}[31mno') }}").unwrap();
    let error = ran(run(&["-p", "abc", "--chat-template-file", file.path().to_str().unwrap()])).error(1);
    assert!(error.contains("[31mno") && !error.contains('\u{1b}'), "{error}");

    let args = ["-p", "hi", "--temp", "5", "-s", "1"];
    let greedy = json(&["-p", "hi"])["tokens"].clone();
    assert_eq!(json(&[&args[..], &["--samplers", "top_k", "--top-k", "1"]].concat())["tokens"], greedy);
    assert_eq!(json(&[&args[..], &["--sampling-seq", "k", "--top-k", "1"]].concat())["tokens"], greedy);
    let biased = json(&["-p", "hi", "-l", "5+1000", "-n", "3"]);
    assert_eq!(biased["tokens"], serde_json::json!([5, 5, 5]));
    assert_eq!(json(&["-p", "hi", "-l", "2+1000"])["finish"], "eos");
    assert_eq!(json(&["-p", "hi", "-l", "2+1000", "--ignore-eos"])["finish"], "length");
}

#[test]
fn answers_end_cleanly() {
    // The context is full.
    let full = json(&["-no-cnv", "-p", "abc", "--ignore-eos", "-n", "-1", "-c", "32"]);
    assert_eq!((&full["finish"], &full["n_ctx"]), (&"context".into(), &32.into()));
    let ran_full = ran(run(&["-no-cnv", "-p", "abc", "--ignore-eos", "-n", "-1", "-c", "32"]));
    assert!(ran_full.stderr.contains("note: the context of 32 tokens is full"), "{}", ran_full.stderr);
    assert_eq!(ran_full.answer().trim_end(), full["text"].as_str().unwrap().trim_end());
    let error = ran(run(&["-p", "abc", "-c", "8"])).error(1);
    assert!(error.contains("context holds 8") && error.contains("-c"), "{error}");
    let ran_long = ran(run(&["-p", "abc", "-c", "1000"]));
    assert!(ran_long.stderr.contains("trained with 512"), "{}", ran_long.stderr);

    // No token at all.
    let none = json(&["-p", "abc", "-n", "0"]);
    assert_eq!((&none["text"], &none["finish"]), (&"".into(), &"length".into()));
    assert_eq!(ran(run(&["-p", "abc", "-n", "0"])).answer(), "\n");

    // A stop text, which is no part of the answer.
    let whole = json(&["-p", "abc", "--ignore-eos", "-n", "12"])["text"].as_str().unwrap().to_owned();
    let (at, _) = whole.char_indices().nth(whole.chars().count() / 2).unwrap();
    let stop: String = whole[at..].chars().take(3).collect();
    let stopped = json(&["-p", "abc", "--ignore-eos", "-n", "12", "-r", "no such text", "-r", &stop]);
    assert_eq!(stopped["finish"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), whole.split(&stop).next().unwrap());
}

#[test]
fn help_and_version() {
    let help = ran(mmq(["run", "--help"])).answer();
    for word in ["--image", "[-mm]", "[-ctk]", "[default: 0.8]", "MMQ_ARG_MODEL", "Sampling:"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(ran(mmq(["--version"])).answer().starts_with("mmq "));
    assert!(ran(mmq(["-m", "x", "-p", "hi"])).error(2).contains("mmq run -m"));
    let bare = ran(mmq(std::iter::empty::<&str>()));
    assert_eq!(bare.code, Some(2));
    assert!(bare.stderr.contains("Usage: mmq") && bare.stderr.contains("run"), "{}", bare.stderr);
}

#[test]
fn a_reader_that_goes_away_ends_the_answer() {
    for more in [&[][..], &["--json"]] {
        let args = [&["-p", "abc", "--ignore-eos", "-n", "200"][..], more].concat();
        let mut child = run(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::ffi::OsStr;
    use std::io::Read;
    use std::os::unix::ffi::OsStrExt;

    /// Starts an endless answer, presses Ctrl-C when `is_at_work` returns, and gives what was on standard output.
    fn interrupted(more: &[&str], is_at_work: impl Fn(&mut std::process::ChildStdout) -> Vec<u8>) -> (String, Ran) {
        let endless = ["-no-cnv", "-p", "abc", "--ignore-eos", "-n", "-1", "-c", "1000000"];
        let mut command = run(&[&endless[..], more].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut text = is_at_work(&mut stdout);
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        stdout.read_to_end(&mut text).unwrap();
        (String::from_utf8(text).unwrap(), Ran::of(child.wait_with_output().unwrap()))
    }

    #[test]
    fn ctrl_c_keeps_what_has_come() {
        let (text, ran) = interrupted(&[], |stdout| {
            let mut first = vec![0];
            stdout.read_exact(&mut first).unwrap();
            first
        });
        assert_eq!(ran.code, Some(130), "{}", ran.stderr);
        assert!(text.len() > 1 && text.ends_with('\n'));
        assert!(ran.stderr.contains("generate") && !ran.stderr.contains("error"), "{}", ran.stderr);

        // With --json nothing shows that it is at work; a slow machine gets more time.
        let mut waits = [300, 3000, 20_000].into_iter();
        let json = loop {
            let wait = std::time::Duration::from_millis(waits.next().expect("it answers in 20 seconds"));
            let (text, ran) = interrupted(&["--json"], |_| {
                std::thread::sleep(wait);
                Vec::new()
            });
            if let (Some(130), Ok(json)) = (ran.code, serde_json::from_str::<Json>(&text)) {
                break json;
            }
        };
        assert_eq!(json["finish"], "cancelled");
        assert_eq!(json["tokens"].as_array().map(Vec::len), json["n_generated"].as_u64().map(|n| n as usize));
    }

    #[test]
    fn names_that_are_no_utf_8() {
        let name = OsStr::from_bytes(b"no\xff.gguf");
        for flag in ["-m", "--mmproj"] {
            let mut command = run(&["-p", "hi"]);
            if flag == "-m" {
                command = mmq(["run", "-p", "hi"]);
            }
            let error = Ran::of(command.arg(flag).arg(name).output().unwrap()).error(1);
            assert!(error.starts_with("no"), "{error}");
        }
        for flag in ["-p", "--image", "--nope"] {
            Ran::of(run(&[]).arg(flag).arg(name).output().unwrap()).error(2);
        }
    }

    /// A full disk is a failure; where nobody reads the notes, it is not.
    #[test]
    #[cfg(target_os = "linux")]
    fn full_devices() {
        let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = Ran::of(run(&["-p", "abc"]).stdout(full()).output().unwrap()).error(1);
        assert!(error.starts_with("standard output: "), "{error}");
        Ran::of(run(&["-p", "abc", "-ngl", "9"]).stderr(full()).output().unwrap()).answer();
    }
}
