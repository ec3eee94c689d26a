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
    for flag in ["-ngl", "--mlock", "--log-file", "-C", "--image-min-tokens"] {
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
fn the_precision_of_the_vision_encoder_is_chosen() {
    let see = |precision: &str| run(&["--image", &picture(), "-p", "hi", "--vision-precision", precision]);
    let answers = ["auto", "int8", "f32"].map(|precision| ran(see(precision)).answer());
    assert_eq!(answers[0], answers[1]);
    let refused = ran(see("int7"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("--vision-precision") && refused.stderr.contains("int7"), "{}", refused.stderr);
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
    assert!(error.contains("without mmproj"), "{error}");

    let several = pair(&["mmproj-a.gguf", "mmproj-b.gguf"]);
    let error = answer(&several, &[]).error(2);
    assert!(error.contains("mmproj-a.gguf") && error.contains("mmproj-b.gguf"), "{error}");
    answer(&several, &["--mmproj", &path(&several, "mmproj-b.gguf")]).answer();
    let error = answer(&pair(&[]), &[]).error(2);
    assert!(error.contains("text.gguf") && error.contains("without mmproj"), "{error}");
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
        assert!(error.contains(name.trim_start_matches('-')), "{flag} {value}: {error}");
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
    assert!(error.contains("context holds 8") && error.contains("ctx-size"), "{error}");
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

/// `mmq bench` on the built-in model, quickly.
fn bench(args: &[&str]) -> Command {
    mmq(["bench", "-p", "8", "-n", "4", "-r", "2", "-t", "1"].iter().chain(args))
}

#[test]
fn bench_writes_a_table() {
    let picture = picture();
    let table =
        ran(mmq(["bench", "-p", "8,16", "-n", "4", "-n", "0", "-pg", "6,2", "-d", "0-4+4", "-r", "2", "-ub", "5"]
            .iter()
            .chain(&["-t", "1", "--image", picture.as_str(), "--image-prompt", "What?"])))
        .answer();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let head = ["model", "size", "params", "backend", "threads", "n_ubatch", "test", "t/s", "median"];
    assert_eq!(rows[0], head, "{table}");
    let tests: Vec<&str> = rows[2..].iter().map(|row| row[6]).collect();
    let mut expected = vec!["load"];
    expected.extend(["pp8", "pp16", "tg4", "pp6+tg2", "pp8 @ d4", "pp16 @ d4", "tg4 @ d4", "pp6+tg2 @ d4"]);
    expected.extend(["enc", "ttft"]);
    expected.extend(cfg!(target_os = "linux").then_some("rss"));
    assert_eq!(tests, expected, "{table}");
    let value = |test: &str| rows.iter().find(|row| row[6] == test).map(|row| row[7]).unwrap();
    assert!(value("pp8").contains(" ± ") && !value("pp8").contains("ms"), "{table}");
    assert!(
        value("enc").ends_with(" ms") && value("ttft").ends_with(" ms") && value("load").ends_with(" ms"),
        "{table}"
    );
}

#[test]
fn bench_writes_for_programs() {
    let json: Json = serde_json::from_str(&ran(bench(&["-o", "json"])).answer()).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, (test, n_prompt, n_gen)) in rows.iter().zip([("pp8", 8, 0), ("tg4", 0, 4)]) {
        assert_eq!((&row["test"], &row["n_prompt"], &row["n_gen"]), (&test.into(), &n_prompt.into(), &n_gen.into()));
        assert_eq!((&row["n_threads"], &row["type_k"]), (&1.into(), &"f16".into()));
        let samples: Vec<f64> = row["samples_ns"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let mean = samples.iter().sum::<f64>() / 2.0;
        assert!(samples.len() == 2 && (row["avg_ns"].as_f64().unwrap() - mean).abs() <= 1.0, "{row}");
        assert!((row["median_ns"].as_f64().unwrap() - mean).abs() <= 1.0, "{row}");
        assert!(row["avg_ts"].as_f64().unwrap() > 0.0 && row["load_ns"].as_u64().unwrap() > 0, "{row}");
    }
    let keys: Vec<&String> = rows[0].as_object().unwrap().keys().filter(|key| !key.starts_with("samples_")).collect();

    let lines = ran(bench(&["-o", "jsonl"])).answer();
    let tests = lines.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["test"].clone());
    assert_eq!(tests.collect::<Vec<_>>(), ["pp8", "tg4"]);

    let csv = ran(bench(&["-o", "csv"])).answer();
    let lines: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines.len(), &lines[0]), (3, &keys.iter().map(|key| key.as_str()).collect()));
    assert!(lines[1..].iter().all(|line| line.iter().all(|value| value.starts_with('"') && value.ends_with('"'))));
}

#[test]
fn bench_refuses_what_makes_no_sense() {
    for (args, complaint) in [
        (["-p", "8-"].as_slice(), "--n-prompt"),
        (&["-p", "9-8"], "8 is less than 9"),
        (&["-n", "-1"], "-1"),
        (&["-pg", "8"], "expected two numbers"),
        (&["-d", "0-9*2"], "never gets"),
        (&["-r", "0"], "--repetitions"),
        (&["-ub", "0"], "-ub 0"),
        (&["-ctk", "q9_9"], "-ctk q9_9"),
        (&["-o", "sql"], "sql"),
        (&["-p", "0", "-n", "0"], "nothing to measure"),
        (&["--mmproj", "x.gguf"], "--mmproj"),
        (&["-hf", "user/model"], "downloads nothing"),
    ] {
        let ran = ran(mmq(["bench", "-t", "1"].iter().chain(args)));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(complaint), "{args:?}: {}", ran.stderr);
    }
    let error = ran(bench(&["-m", "none.gguf"])).stderr;
    assert!(error.contains("none.gguf: "), "{error}");
    let text = ran(bench(&["-ngl", "99", "-fa", "1", "-mmp", "0", "-o", "jsonl"]));
    let notes: Vec<&str> = text.stderr.lines().filter(|line| line.starts_with("note: ")).collect();
    assert_eq!(notes.len(), 2, "{}", text.stderr);
    // What was measured before a failure is whole.
    let folder = pair(&[]);
    let text = path(&folder, "text.gguf");
    let failed = ran(mmq(["bench", "-m", &text, "-p", "4", "-n", "0", "-r", "1", "-o", "json", "--image", &picture()]));
    assert_eq!((failed.code, failed.stderr.contains("without mmproj")), (Some(2), true), "{}", failed.stderr);
    assert_eq!(serde_json::from_str::<Json>(&failed.stdout).unwrap()[0]["test"], "pp4");
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
    fn ctrl_c_keeps_what_was_measured() {
        let mut command = bench(&["-p", "16", "-n", "64", "-r", "10000", "-o", "json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut text = vec![0];
        child.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(130), ""));
        let text = String::from_utf8(text).unwrap() + &ran.stdout;
        assert!(serde_json::from_str::<Json>(&text).is_ok_and(|json| json.is_array()), "{text}");
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

/// `mmq pack` with its files last.
fn pack(more: &[&str], from: &str, to: &str) -> Ran {
    ran(mmq(["pack"].iter().chain(more).chain(&[from, "-o", to])))
}

#[test]
fn packed_files_answer_as_before_and_turn_back() {
    let folder = tempfile::tempdir().unwrap();
    let nano = |name: &str| format!("{}/models/nano/{name}", env!("CARGO_MANIFEST_DIR"));
    let fixtures = ["llava-mlp.gguf", "llama-k-quants.gguf"].map(fixture);
    for from in [nano("nano.gguf"), nano("mmproj-nano.gguf")].into_iter().chain(fixtures) {
        let name = Path::new(&from).file_name().unwrap().to_str().unwrap();
        let (packed, back) = (path(&folder, name), path(&folder, "back.gguf"));
        assert!(pack(&[], &from, &packed).stderr.contains("B of tensors in"));
        let (a, b) = (Gguf::open(&from).unwrap(), Gguf::open(&packed).unwrap());
        let moved = |t: &mmq::gguf::TensorInfo| {
            let u = b.tensor(&t.name).unwrap();
            assert_eq!((&u.name, u.dtype, &u.shape, u.n_bytes), (&t.name, t.dtype, &t.shape, t.n_bytes));
            assert_eq!(b.bytes(u).as_ptr() as usize % 64, 0);
            b.bytes(u)[..] != a.bytes(t)[..]
        };
        assert!(a.tensors().iter().filter(|t| moved(t)).count() > 3, "{name}");
        assert_eq!(a.metadata().get("general.architecture"), b.metadata().get("general.architecture"));
        let raw = std::fs::read(&packed).unwrap();
        assert!(raw.windows(10).any(|w| w == b"mmq-packed"));

        let ran = pack(&["--unpack", "-q"], &packed, &back);
        assert_eq!((ran.stderr.as_str(), ran.code), ("", Some(0)));
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&back).unwrap(), "{name} comes back otherwise");
    }

    let picture = picture();
    let ask = |model: &str, mmproj: &str| {
        let args = ["run", "-m", model, "--mmproj", mmproj, "--image", &picture, "-p", "What is this?", "--temp", "0"];
        ran(mmq(args)).answer()
    };
    let (text, mmproj) = (path(&folder, "nano.gguf"), path(&folder, "mmproj-nano.gguf"));
    assert_eq!(ask(&text, &mmproj), ask(&nano("nano.gguf"), &nano("mmproj-nano.gguf")));

    let table = ran(mmq(["inspect", &text])).answer();
    assert!(table.contains("packed        \"rows16.v1\"") && table.contains("architecture  \"llama\""), "{table}");
    let json: Json = serde_json::from_str(&ran(mmq(["inspect", "--json", &text])).answer()).unwrap();
    assert_eq!((&json["packed"], &json["runs"]), (&"rows16.v1".into(), &true.into()));
}

#[test]
fn what_cannot_be_packed_or_unpacked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (from, packed, out) = (fixture("llama-gqa.gguf"), path(&folder, "packed.gguf"), path(&folder, "out.gguf"));
    assert!(pack(&["--unpack"], &from, &out).error(2).ends_with("is not packed"));
    pack(&[], &from, &packed).answer();
    assert!(pack(&[], &packed, &out).error(2).ends_with("is packed already"));
    let other = path(&folder, "other.gguf");
    Writer::new().set("general.architecture", "bert").write(&other, |_, _| Ok(())).unwrap();
    assert!(
        pack(&[], &other, &out).error(1).contains("expected a model that mmq knows, but the architecture is \"bert\"")
    );
    assert!(!Path::new(&out).exists());

    // In place.
    pack(&["--unpack"], &packed, &packed).answer();
    assert!(std::fs::read(&packed).unwrap() == std::fs::read(&from).unwrap());
    pack(&[], &packed, &packed).answer();

    let replaced = |from: &[u8], to: &[u8]| {
        let mut data = std::fs::read(&packed).unwrap();
        let at = data.windows(from.len()).position(|w| w == from).unwrap();
        data[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&out, data).unwrap();
        ran(mmq(["run", "-m", &out, "-p", "hi"])).error(1)
    };
    let error = replaced(b"rows16.v1", b"rows16.v2");
    assert!(error.contains("\"rows16.v2\"") && error.contains("knows rows16.v1"), "{error}");
    let error = replaced(b"mmq-packed", b"mmq-pocked");
    assert!(error.contains("only packed files have it"), "{error}");
}

#[test]
fn load_modes() {
    let greedy = json(&["-p", "abc"])["tokens"].clone();
    for mode in ["auto", "mmap", "repack", "none", "dio"] {
        assert_eq!(json(&["-p", "abc", "--load-mode", mode])["tokens"], greedy, "{mode}");
    }
    for flags in [&["--no-mmap"][..], &["-rtr"], &["--mmap"], &["-nr"], &["-lm", "repack"]] {
        let ran = ran(run(&[&["-p", "abc"], flags].concat()));
        assert!(!ran.stderr.contains("note"), "{}", ran.stderr);
        ran.answer();
    }
    let locked = ran(run(&["-p", "abc", "--load-mode", "mmap+mlock"]));
    assert!(locked.stderr.contains("note: memory is not locked"), "{}", locked.stderr);
    let refused = Ran::of(run(&["-p", "abc", "--load-mode", "fast"]).output().unwrap());
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("none of auto, mmap, repack"), "{}", refused.stderr);
    for mode in ["mmap", "repack"] {
        ran(mmq(["verify", "-q", "--load-mode", mode, &fixture("llama-k-quants.gguf")])).answer();
    }
}
