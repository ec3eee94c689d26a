//! `mmq quantize`, `mmq split` and `mmq merge` as their users meet them, on the built-in models and recorded tiny ones.
#![cfg(feature = "cli")]

use mmq::gguf::{Gguf, Value, Writer};
use mmq::pipelines::{Cancel, Engine, EngineOptions, Quantizer};
use mmq::quantize::mix::{Mix, Model, fitting, may_quantize};
use mmq::quantize::{FileType, Goal, Plan, Request};
use mmq::{Dtype, ErrorKind};
use mmq_kernels::Search;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

fn checkout(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name).to_str().expect("the checkout has a UTF-8 path").to_owned()
}

/// Exit code, standard output and standard error of a run.
fn mmq(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_mmq")).args(args).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap(), stderr)
}

/// What a run that goes well says on standard error.
#[track_caller]
fn quantize(args: &[&str]) -> String {
    let (code, _, stderr) = mmq(&[&["quantize"], args].concat());
    assert_eq!(code, 0, "{args:?}: {stderr}");
    stderr
}

/// The message of a run that fails with `code`.
#[track_caller]
fn refused(code: i32, args: &[&str]) -> String {
    let (got, stdout, stderr) = mmq(args);
    assert_eq!((got, stdout.as_str()), (code, ""), "{args:?}: {stderr}");
    stderr
}

/// The built-in models in F16, made once.
fn float(name: &str) -> String {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        for name in ["nano", "mmproj-nano"] {
            let to = folder.path().join(format!("{name}.gguf"));
            let from = checkout(&format!("models/nano/{name}.gguf"));
            quantize(&["--allow-requantize", "-q", &from, to.to_str().unwrap(), "F16"]);
        }
        folder
    });
    folder.path().join(format!("{name}.gguf")).to_str().unwrap().to_owned()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.0.path().read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn dtype(gguf: &Gguf, tensor: &str) -> Dtype {
    gguf.tensor(tensor).unwrap_or_else(|| panic!("{tensor}")).dtype
}

/// A LLaMA file with two matrices of 256 columns that hold `values`, over and over.
fn small(path: &str, values: &[f32]) {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("llama.block_count", 1u32);
    writer.tensor("blk.0.attn_q.weight", Dtype::F32, &[4, 256]).unwrap();
    writer.tensor("blk.0.ffn_norm.weight", Dtype::F32, &[256]).unwrap();
    let data = |n: usize| -> Vec<u8> { values.iter().cycle().take(n).flat_map(|x| x.to_le_bytes()).collect() };
    writer.write(path, |info, sink| sink.put(&data(info.n_elements()))).unwrap();
}

#[test]
fn every_type() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let to = folder.path("out.gguf");
    let source = Gguf::open(&nano).unwrap();
    for wanted in FileType::ALL {
        let plan = Plan::new(&source, &Request::new(Goal::Type(wanted))).unwrap();
        let text = ["quantize", nano.as_str(), &to, wanted.name()];
        if let Some(obstacle) = plan.obstacle() {
            let message = refused(if obstacle.kind() == ErrorKind::Usage { 2 } else { 1 }, &text);
            assert!(message.contains("cannot be written yet") || message.contains("importance matrix"), "{message}");
            assert!(folder.names().is_empty());
            continue;
        }
        let table = quantize(&text[1..]);
        assert!(table.contains("[   1/  39] output.weight"), "{table}");
        let made = Gguf::open(&to).unwrap();
        assert_eq!(made.metadata().get("general.file_type"), Some(&Value::U32(wanted as u32)));
        assert_eq!(made.metadata().get("general.quantization_version"), Some(&Value::U32(2)));
        let planned: Vec<_> = plan.tensors.iter().map(|t| (t.name.clone(), t.to)).collect();
        let written: Vec<_> = made.tensors().iter().map(|t| (t.name.clone(), t.dtype)).collect();
        assert_eq!(written, planned, "{wanted}");
        Engine::load(Path::new(&to), None, &EngineOptions::default()).unwrap();
        std::fs::remove_file(&to).unwrap();
    }
}

#[test]
fn the_command_line_of_llama_quantize() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let at = folder.path("model.gguf");
    std::fs::copy(&nano, &at).unwrap();
    let matrix = checkout("tests/fixtures/imatrix/nano.gguf");
    let types = folder.path("types.txt");
    std::fs::write(&types, "attn_q=q8_0\n  ffn_up=Q5_0\tffn_gate=q5_1").unwrap();
    let out = folder.path("out.gguf");
    let lines: &[&[&str]] = &[
        &["--allow-requantize", "--leave-output-tensor", "--pure", &at, &out, "Q4_0", "1"],
        &["--imatrix", &matrix, "--include-weights", "attn", "--output-tensor-type", "Q8_0", &at, &out, "q4_0"],
        &["--imatrix", &matrix, "--exclude-weights", "ffn", "--exclude-weights", "attn_q", &at, &out, "2", "2"],
        &[
            "--token-embedding-type",
            "q5_0",
            "--tensor-type",
            "attn_v=q8_0",
            "--tensor-type-file",
            &types,
            &at,
            &out,
            "8",
        ],
        &["--prune-layers", "1,3", "--override-kv", "llama.context_length=int:512", &at, &out, "BF16"],
        &["--dry-run", &at, "Q4_K"],
        &["--max-buffer-size", "64", &at, &out, "COPY"],
    ];
    for line in lines {
        quantize(line);
    }
    quantize(&[&at, "q4_k_s"]);
    quantize(&["--keep-split", &at, "Q8_0"]);
    let names =
        ["ggml-model-Q4_K_S.gguf", "ggml-model-Q8_0-00001-of-00001.gguf", "model.gguf", "out.gguf", "types.txt"];
    assert_eq!(folder.names(), names);
}

#[test]
fn types_by_name() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let out = folder.path("out.gguf");
    let rules = ["--tensor-type", r"blk\.(0|1)\.attn_.=Q8_0", "--tensor-type", "ATTN_=q5_1"];
    let ends = ["--output-tensor-type", "F16", "--token-embedding-type", "q5_0"];
    quantize(&[&rules[..], &ends, &[&nano, &out, "Q4_0"]].concat());
    let made = Gguf::open(&out).unwrap();
    let expected = [
        ("blk.0.attn_q.weight", Dtype::Q8_0),
        ("blk.1.attn_k.weight", Dtype::Q8_0),
        ("blk.1.attn_output.weight", Dtype::Q8_0),
        ("blk.2.attn_q.weight", Dtype::Q5_1),
        ("blk.2.ffn_up.weight", Dtype::Q4_0),
        ("blk.2.ffn_norm.weight", Dtype::F32),
        ("output.weight", Dtype::F16),
        ("token_embd.weight", Dtype::Q5_0),
    ];
    for (name, expected) in expected {
        assert_eq!(dtype(&made, name), expected, "{name}");
    }
    let table = quantize(&["--dry-run", &nano, "Q4_K_M"]);
    assert!(table.contains("F16 → Q5_0") && table.contains("(rows of 128 cannot be Q4_K)"), "{table}");
    quantize(&["--leave-output-tensor", &nano, &out, "Q8_0"]);
    assert_eq!(dtype(&Gguf::open(&out).unwrap(), "output.weight"), Dtype::F16);
    quantize(&["--pure", &nano, &out, "Q4_0"]);
    assert_eq!(dtype(&Gguf::open(&out).unwrap(), "output.weight"), Dtype::Q4_0);
}

#[test]
fn metadata_and_layers() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let out = folder.path("out.gguf");
    let matrix = checkout("tests/fixtures/imatrix/nano.gguf");
    let kv = ["--override-kv", "a.b=str:x:y=z", "--override-kv", "c.d=bool:true", "--override-kv", "e=float:-1.5"];
    quantize(&[&kv[..], &["--imatrix", &matrix, "--prune-layers", "2", &nano, &out, "Q8_0"]].concat());
    let (made, source) = (Gguf::open(&out).unwrap(), Gguf::open(&nano).unwrap());
    let meta = made.metadata();
    assert_eq!(meta.get("a.b"), Some(&Value::from("x:y=z")));
    assert_eq!(meta.get("c.d"), Some(&Value::Bool(true)));
    assert_eq!(meta.get("e"), Some(&Value::F32(-1.5)));
    assert_eq!(meta.get("llama.block_count"), Some(&Value::U32(3)));
    assert_eq!(meta.str("quantize.imatrix.file").unwrap(), Some(matrix.as_str()));
    assert!(meta.usize("quantize.imatrix.entries_count").unwrap() > Some(20));
    assert_eq!(meta.usize("quantize.imatrix.chunks_count").unwrap(), Some(3));
    let bytes = |gguf: &Gguf, name: &str| gguf.bytes(gguf.tensor(name).unwrap()).to_vec();
    assert!(made.tensor("blk.3.attn_q.weight").is_none());
    assert_eq!(bytes(&made, "blk.2.attn_norm.weight"), bytes(&source, "blk.3.attn_norm.weight"));
    Engine::load(Path::new(&out), None, &EngineOptions::default()).unwrap();
}

#[test]
fn encoders_keep_what_is_fragile() {
    let (folder, vision) = (Folder::new(), float("mmproj-nano"));
    let out = folder.path("mmproj.gguf");
    quantize(&[&vision, &out, "Q4_0"]);
    let made = Gguf::open(&out).unwrap();
    for info in made.tensors() {
        let expected = match info.name.as_str() {
            "v.patch_embd.weight" => Dtype::F16,
            "mm.0.weight" | "mm.2.weight" => Dtype::Q8_0,
            name if info.shape.len() == 1 || name == "v.position_embd.weight" => Dtype::F32,
            // Rows of 192 cannot be Q6_K, those of 512 can.
            "v.blk.0.ffn_down.weight" | "v.blk.4.ffn_down.weight" => Dtype::Q6_K,
            name if name.starts_with("v.blk.0.") || name.starts_with("v.blk.4.") => Dtype::Q8_0,
            _ => Dtype::Q4_0,
        };
        assert_eq!(info.dtype, expected, "{}", info.name);
    }
    Engine::load(Path::new(&checkout("models/nano/nano.gguf")), Some(Path::new(&out)), &EngineOptions::default())
        .unwrap();
    quantize(&["--tensor-type", "blk.0.=q4_1", "--pure", &vision, &out, "Q5_0"]);
    let made = Gguf::open(&out).unwrap();
    assert_eq!(dtype(&made, "v.blk.0.attn_q.weight"), Dtype::Q4_1);
    assert_eq!(dtype(&made, "v.blk.4.attn_q.weight"), Dtype::Q5_0);

    // The widths of ViT-L.
    let names: Vec<String> = (0..23).map(|i| format!("v.blk.{i}.attn_q.weight")).collect();
    let model = Model { architecture: "clip".into(), ..Model::default() };
    for (wanted, inner, outer) in [
        (FileType::Q4_K_M, Dtype::Q4_K, Dtype::Q6_K),
        (FileType::IQ4_XS, Dtype::IQ4_XS, Dtype::Q6_K),
        (FileType::Q6_K, Dtype::Q6_K, Dtype::Q6_K),
        (FileType::Q8_0, Dtype::Q8_0, Dtype::Q8_0),
    ] {
        let mut mix = Mix::new(&model, wanted, false, None, None, names.iter().map(String::as_str));
        let mut of = |name: &str, cols: usize| fitting(mix.next(name, &[1024, cols]).unwrap(), cols);
        for (name, expected) in [("v.blk.0.ffn_down.weight", outer), ("v.blk.11.ffn_up.weight", inner)] {
            assert_eq!(of(name, 4096), expected, "{wanted} {name}");
        }
        assert_eq!((of("v.blk.22.attn_q.weight", 1024), of("mm.0.weight", 1024)), (outer, outer), "{wanted}");
    }
    for kept in ["v.position_embd.weight", "v.patch_embd.weight", "v.class_embd", "v.pre_ln.weight", "mm.0.bias"] {
        assert!(!may_quantize(kept, &[577, 1024]), "{kept}");
    }
}

#[test]
fn rows_of_minigpt4_fall_back_to_small_blocks() {
    let folder = Folder::new();
    let mut writer = Writer::new();
    writer.set("general.architecture", "clip");
    // The widths of EVA-CLIP and the Q-Former.
    let tensors = [
        ("v.blk.0.attn_q.weight", 1408, Dtype::Q8_0),
        ("v.blk.1.attn_q.weight", 1408, Dtype::Q5_0),
        ("v.blk.1.ffn_down.weight", 6144, Dtype::Q4_K),
        ("v.blk.2.ffn_up.weight", 1408, Dtype::Q8_0),
        ("qf.blk.0.xattn_k.weight", 1408, Dtype::Q8_0),
        ("qf.blk.1.attn_q.weight", 768, Dtype::Q6_K),
        ("qf.blk.1.ffn_down.weight", 3072, Dtype::Q6_K),
        ("qf.query", 768, Dtype::F32),
        ("mm.0.weight", 768, Dtype::Q6_K),
    ];
    for (name, n_cols, _) in tensors {
        writer.tensor(name, Dtype::F32, &[2, n_cols]).unwrap();
    }
    let (source, out) = (folder.path("eva.gguf"), folder.path("out.gguf"));
    let wave = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let write = writer.write(Path::new(&source), |info, sink| {
        let bytes: Vec<u8> = (0..info.n_elements()).flat_map(|i| wave(i).to_le_bytes()).collect();
        sink.put(&bytes)
    });
    write.unwrap();
    let report = quantize(&[&source, &out, "Q4_K_M"]);
    let made = Gguf::open(&out).unwrap();
    for (name, n_cols, expected) in tensors {
        assert_eq!(dtype(&made, name), expected, "{name}");
        let line = report.lines().find(|line| line.contains(name)).unwrap();
        assert_eq!(line.contains(&format!("rows of {n_cols} cannot be")), n_cols == 1408, "{line}");
    }
    assert!(report.contains("4 of 9 tensors with another type than asked for"), "{report}");
}

#[test]
fn nothing_is_written_in_a_dry_run() {
    let (folder, nano) = (Folder::new(), float("nano"));
    for goal in [&["Q4_K_M"][..], &["--target-bpw", "6"], &["IQ2_XXS"]] {
        let stderr = quantize(&[&["--dry-run", &nano, "-o", &folder.path("x.gguf")], goal].concat());
        assert!(stderr.contains("bits per weight) →"), "{stderr}");
    }
    assert!(folder.names().is_empty());
    let (code, stdout, stderr) = mmq(&["quantize", "--dry-run", "--json", "-q", &nano, "Q4_K_M"]);
    let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(object["tensors"].as_array().unwrap().len(), 39);
    assert!(object["bytes"].as_u64() < object["bytes_before"].as_u64() && object["output"].is_null());
}

#[test]
fn a_file_may_take_its_sources_place() {
    let folder = Folder::new();
    let path = folder.path("model.gguf");
    std::fs::copy(float("nano"), &path).unwrap();
    let (_, stdout, _) = mmq(&["quantize", "--json", "-q", &path, &path, "Q8_0"]);
    let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(object["output"][0], path.as_str());
    assert!(object["tensors"][0]["error"].as_f64().is_some_and(|e| 0.0 < e && e < 0.01), "{object:#}");
    assert_eq!(dtype(&Gguf::open(&path).unwrap(), "output.weight"), Dtype::Q8_0);
    assert_eq!(folder.names(), ["model.gguf"]);
}

#[test]
fn whoever_stops_it_finds_nothing() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let gguf = Gguf::open(&nano).unwrap();
    let plan = Plan::new(&gguf, &Request::new(Goal::Type(FileType::Q8_0))).unwrap();
    for stop_at in [0, 20, 38] {
        let cancel = Cancel::default();
        let mut progress = |_| {};
        let mut quantizer = Quantizer::new(&gguf, Search::Best, None, Some(2), &cancel, &mut progress);
        let result = quantizer.run(&plan, &[folder.path("out.gguf")], &mut |outcome| {
            if outcome.index == stop_at {
                cancel.cancel();
            }
        });
        match stop_at {
            38 => assert!(result.is_ok() && std::fs::remove_file(folder.path("out.gguf")).is_ok()),
            _ => assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled),
        }
        assert!(folder.names().is_empty(), "{:?}", folder.names());
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing() {
    // A model whose matrices keep the slowest search busy for a while.
    let folder = Folder::new();
    let path = folder.path("large.gguf");
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("llama.block_count", 1u32);
    for i in 0..64 {
        writer.tensor(&format!("blk.0.attn_q.{i}.weight"), Dtype::F16, &[512, 4096]).unwrap();
    }
    let mut state = 1u32;
    let noise: Vec<u8> = (0..4096)
        .flat_map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (0x2c00u16 | (state >> 20) as u16 & 0x83ff).to_le_bytes()
        })
        .collect();
    writer.write(&path, |info, sink| (0..info.shape[0]).try_for_each(|_| sink.put(&noise))).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_mmq"))
        .args(["quantize", &path, &folder.path("out.gguf"), "Q4_K_M", "1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line of the table: at work.
    let mut first = [0; 8];
    std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut first).unwrap();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let code = child.wait_with_output().unwrap().status.code();
    // A machine that is done before the signal arrives has a complete file.
    match code {
        Some(130) => assert_eq!(folder.names(), ["large.gguf"]),
        other => assert_eq!((other, folder.names()), (Some(0), vec!["large.gguf".to_owned(), "out.gguf".to_owned()])),
    }
}

#[test]
fn what_is_refused() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let out = folder.path("out.gguf");
    let built_in = checkout("models/nano/nano.gguf");
    let matrix = checkout("tests/fixtures/imatrix/nano.gguf");
    let refuse = |code: i32, args: &[&str], words: &[&str]| {
        let message = refused(code, &[&["quantize"], args].concat());
        assert!(words.iter().all(|word| message.contains(word)), "{args:?}: {message}");
    };
    refuse(2, &[&nano], &["which type?"]);
    refuse(2, &[&nano, &out], &["which type?"]);
    refuse(2, &[&nano, &out, "Q4"], &["\"Q4\" is no type"]);
    refuse(2, &[&nano, &out, "Q4_0", "many"], &["\"many\" is no number of threads"]);
    refuse(2, &[&nano, "Q4_0", "2", "3"], &["\"3\""]);
    refuse(2, &["--tensor-type", "attn_q", &nano, &out, "Q4_0"], &["NAME=TYPE"]);
    refuse(2, &["--tensor-type", "attn_(=q4_0", &nano, &out, "Q4_0"], &["no regular expression"]);
    refuse(2, &["--tensor-type", "attn=i32", &nano, &out, "Q4_0"], &["\"i32\" is no type of weights"]);
    refuse(
        2,
        &["--tensor-type", "(a|a|b?)*+(x+x+)+y=q8_0", "--tensor-type", r"((.*)*.*\2)*z=q8_0", &nano, &out, "Q8_0"],
        &["expression"],
    );
    refuse(2, &["--override-kv", "a=int:x", &nano, &out, "Q4_0"], &["\"x\" is no int"]);
    refuse(2, &["--override-kv", "a=u8:1", &nano, &out, "Q4_0"], &["KEY=TYPE:VALUE"]);
    refuse(2, &["--prune-layers", "4", &nano, &out, "Q4_0"], &["no layer 4", "it has 4"]);
    refuse(2, &["--prune-layers", "0,1,2,3", &nano, &out, "Q4_0"], &["all of its 4 layers"]);
    refuse(
        2,
        &["--include-weights", "x", "--exclude-weights", "y", "--imatrix", &matrix, &nano, "Q4_0"],
        &["cannot be used with"],
    );
    refuse(2, &["--imatrix", &matrix, "--include-weights", "nowhere", &nano, &out, "Q4_0"], &["no tensor is left"]);
    refuse(1, &["--imatrix", &nano, &nano, &out, "Q4_0"], &["nano.gguf"]);
    refuse(2, &[&built_in, &out, "Q4_0"], &["quantized already", "--allow-requantize", "token_embd.weight"]);
    refuse(2, &["--target-size", "1M", &nano, &out, "Q4_0"], &["Q4_0 and a target"]);
    refuse(2, &["--target-size", "1M", &nano], &["where to?"]);
    refuse(2, &["--target-size", "big", &nano, &out], &["1.5G"]);
    refuse(2, &["--measure", &out, "--dry-run", &nano, &out, "Q4_0"], &["cannot be used with"]);
    refuse(1, &[&checkout("README.md"), &out, "Q4_0"], &["README.md"]);
    refuse(1, &[&nano, &folder.path("no/such/folder.gguf"), "Q8_0"], &["folder.gguf"]);
    let packed = folder.path("packed.gguf");
    assert_eq!(mmq(&["pack", &built_in, "-o", &packed]).0, 0);
    refuse(2, &[&packed, &out, "Q4_0"], &["mmq pack --unpack"]);
    assert_eq!(refused(2, &["split", &packed, &out]).matches("mmq pack --unpack").count(), 1);
    std::fs::remove_file(packed).unwrap();
    let mismatch = folder.path("small.gguf");
    small(&mismatch, &[1.0, 2.0]);
    refuse(1, &["--imatrix", &matrix, &mismatch, &out, "Q8_0"], &["blk.0.attn_q.weight", "256", "128"]);
    assert_eq!(folder.names(), ["small.gguf"]);
}

#[test]
fn weights_that_are_no_numbers() {
    let folder = Folder::new();
    let (path, out) = (folder.path("in.gguf"), folder.path("out.gguf"));
    let mut values: Vec<f32> = (0..256).map(|i| i as f32 / 256.0 - 0.5).collect();
    let cases = [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")];
    for (value, word) in cases {
        values[77] = value;
        small(&path, &values);
        for wanted in ["Q4_K_M", "F16", "Q8_0", "COPY"] {
            let message = refused(1, &["quantize", &path, &out, wanted]);
            let expected =
                format!("tensor \"blk.0.attn_q.weight\": row 0, column 77: expected a finite number, got {word}");
            assert!(message.contains(&expected), "{wanted}: {message}");
        }
        let message = refused(1, &["quantize", &path, &out, "--target-bpw", "5"]);
        assert!(message.contains("column 77"), "{message}");
    }
    values[77] = 1e6;
    small(&path, &values);
    let message = refused(1, &["quantize", &path, &out, "F16"]);
    assert!(message.contains("row 0, column 77: 1000000 is too large for F16"), "{message}");
    quantize(&[&path, &out, "BF16"]);
    for (value, wanted) in [(1e30, "Q8_0"), (1e12, "Q8_0"), (-1e12, "Q4_0"), (1e30, "Q4_K"), (1e12, "Q6_K")] {
        values[77] = value;
        small(&path, &values);
        for search in ["best", "ggml"] {
            let message = refused(1, &["quantize", "--pure", "--search", search, &path, &out, wanted]);
            assert!(
                message.contains("row 0, column 77: ") && message.contains(" is too large for Q"),
                "{wanted}: {message}"
            );
        }
    }
    values[77] = 1e30;
    small(&path, &values);
    quantize(&[&path, &out, "BF16"]);
}

#[test]
fn numbers_without_reason() {
    let folder = Folder::new();
    let (path, out) = (folder.path("in.gguf"), folder.path("out.gguf"));
    let write = |n_layer: u64, n_head: u32, name: &str| {
        let mut writer = Writer::new();
        writer.set("general.architecture", "llama").set("llama.block_count", n_layer);
        writer.set("llama.attention.head_count", n_head).set("llama.attention.head_count_kv", 0u32);
        writer.set("llama.expert_count", u32::MAX);
        writer.tensor(name, Dtype::F32, &[1, 1, 32]).unwrap();
        writer.tensor(&format!("x{name}"), Dtype::F32, &[2, 3, 32]).unwrap();
        writer.write(&path, |info, sink| sink.put(&vec![0; info.n_bytes])).unwrap();
    };
    let huge = format!("blk.{}.ffn_down.weight", u64::MAX);
    write(u64::MAX, 3, &huge);
    for more in [&["--prune-layers", "5"][..], &[]] {
        let message = refused(1, &[&["quantize"], more, &[&path, &out, "Q4_K_M"]].concat());
        assert!(message.contains("llama.block_count"), "{message}");
    }
    write(3, u32::MAX, &huge);
    assert!(refused(1, &["quantize", &path, &out, "Q4_K_M"]).contains("tells no layer"));
    write(3, u32::MAX, "v.blk.65535.attn_v.weight");
    quantize(&[&path, &out, "Q4_K_M"]);
    quantize(&[&path, &out, "--target-bpw", "9"]);
    let made = Gguf::open(&out).unwrap();
    assert!(made.tensors().iter().all(|info| made.bytes(info).len() == info.n_bytes));
}

#[test]
fn shards() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let whole = folder.path("whole.gguf");
    quantize(&["-q", &nano, &whole, "COPY"]);
    let run = |args: &[&str]| {
        let (code, _, stderr) = mmq(args);
        assert_eq!(code, 0, "{args:?}: {stderr}");
        stderr
    };
    let plan = run(&["split", "--dry-run", "--split-max-tensors", "16", &whole, &folder.path("by-count")]);
    assert!(plan.contains("by-count-00003-of-00003.gguf: 7 tensors"), "{plan}");
    assert_eq!(folder.names(), ["whole.gguf"]);
    let original = std::fs::read(&whole).unwrap();
    for (name, flags, n) in [
        ("by-count", &["--split-max-tensors", "16"][..], 3),
        ("default", &[], 1),
        ("by-size.gguf", &["--split-max-size", "0.5M"], 5),
        ("bare", &["--split-max-tensors", "20", "--no-tensor-first-split"], 3),
    ] {
        run(&[&["split"], flags, &[&whole, &folder.path(name)]].concat());
        let stem = name.trim_end_matches(".gguf");
        let last = folder.path(&format!("{stem}-{n:05}-of-{n:05}.gguf"));
        let parts = Gguf::open(&last).unwrap();
        assert_eq!((parts.n_shards(), parts.tensors().len()), (n, 39), "{name}");
        assert_eq!(Gguf::open(&whole).unwrap().n_bytes(), parts.n_bytes());
        let merged = folder.path("merged.gguf");
        if n == 1 {
            assert!(refused(2, &["merge", &last, &merged]).contains("is one file already"));
            continue;
        }
        run(&["merge", &last, &merged]);
        assert!(std::fs::read(&merged).unwrap() == original, "{name}");
        assert!(refused(2, &["split", &last, &merged]).contains("is split already"));
        // Quantized whole and in parts, the tensors are the same.
        let (kept, joined) = (folder.path("kept"), folder.path("joined.gguf"));
        quantize(&["-q", "--keep-split", &last, &kept, "Q8_0"]);
        quantize(&["-q", &last, &joined, "Q8_0"]);
        quantize(&["-q", &whole, &merged, "Q8_0"]);
        assert!(std::fs::read(&joined).unwrap() == std::fs::read(&merged).unwrap(), "{name}");
        let kept =
            Gguf::open(folder.path(&format!("kept-00001-of-{:05}.gguf", if name == "bare" { 2 } else { n }))).unwrap();
        let joined = Gguf::open(&joined).unwrap();
        assert_eq!(kept.tensors().len(), 39);
        for info in kept.tensors() {
            assert!(kept.bytes(info)[..] == joined.bytes(joined.tensor(&info.name).unwrap())[..], "{}", info.name);
        }
    }
    for flags in [["--split-max-tensors", "0"], ["--split-max-size", "0M"], ["--split-max-size", "2X"]] {
        refused(2, &[&["split"], &flags[..], &[&whole, &folder.path("x")]].concat());
    }
    assert!(refused(1, &["merge", &folder.path("none.gguf"), &folder.path("x.gguf")]).contains("none.gguf"));
}

#[test]
fn targets() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let out = folder.path("out.gguf");
    let source = Gguf::open(&nano).unwrap();
    let overhead = source.file_bytes() - source.n_bytes();
    let mut errors = Vec::new();
    for target in ["800K", "900000", "1.2M", "0.0015GB"] {
        let stderr = quantize(&[&nano, &out, "--target-size", target]);
        let allowed = match target {
            "800K" => 800_000,
            "900000" => 900_000,
            "1.2M" => 1_200_000,
            _ => 1_500_000,
        };
        let made = Gguf::open(&out).unwrap();
        assert!(made.file_bytes() <= allowed, "{target}: {} bytes", made.file_bytes());
        // A single matrix of this small model is more than a hundredth of it.
        assert!(made.file_bytes() as f64 > 0.97 * allowed as f64, "{target}: {} bytes\n{stderr}", made.file_bytes());
        assert!(stderr.contains("chosen: "), "{stderr}");
        let (_, stdout, _) = mmq(&["quantize", "-q", "--json", &nano, &out, "--target-size", target]);
        let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let of = |t: &serde_json::Value| t["error"].as_f64().unwrap_or(0.0).powi(2);
        errors.push(object["tensors"].as_array().unwrap().iter().map(of).sum::<f64>());
    }
    assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");

    quantize(&[&nano, &out, "--target-bpw", "5.6", "2"]);
    let made = Gguf::open(&out).unwrap();
    let bits = made.n_bytes() as f64 * 8.0 / made.n_params() as f64;
    assert!((5.45..=5.6).contains(&bits), "{bits}");
    let message = refused(2, &["quantize", &nano, &out, "--target-size", "300K"]);
    assert!(message.contains("a target of 300000 bytes cannot be reached: from "), "{message}");
    let message = refused(2, &["quantize", &nano, &out, "--target-bpw", "1.5"]);
    assert!(message.contains("bits per weight cannot be reached: from "), "{message}");
    let stderr = quantize(&[&nano, &out, "--target-size", "1G"]);
    assert!(stderr.contains("the model is no larger"), "{stderr}");
    assert_eq!(Gguf::open(&out).unwrap().file_bytes(), source.n_bytes() + overhead);
    // What is named stays as it is named.
    quantize(&[&nano, &out, "--target-bpw", "6", "--tensor-type", "attn_q=q8_0"]);
    assert_eq!(dtype(&Gguf::open(&out).unwrap(), "blk.2.attn_q.weight"), Dtype::Q8_0);
}

#[test]
fn measured() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let out = folder.path("out.gguf");
    let text = checkout("tests/fixtures/english.txt");
    let (code, stdout, stderr) = mmq(&["quantize", "-q", "--measure", &text, &nano, &out, "Q8_0"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("verdict: ") && stdout.contains("perplexity"), "{stdout}");
    let (_, stdout, _) = mmq(&["quantize", "-q", "--json", "--measure", &text, &nano, &out, "Q4_0"]);
    let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(object["measured"]["kld"].as_f64().is_some_and(|kld| kld > 0.0), "{object:#}");
    std::fs::remove_file(&out).unwrap();
    let vision = float("mmproj-nano");
    let message = refused(1, &["quantize", "-q", "--measure", &text, &vision, &out, "Q8_0"]);
    assert!(message.contains("--measure"), "{message}");
    refused(1, &["quantize", "--measure", &folder.path("none.txt"), &nano, &out, "Q8_0"]);
    assert!(folder.names().is_empty());
}

#[test]
fn threads_and_chunks_change_nothing() {
    let (folder, nano) = (Folder::new(), float("nano"));
    let paths: Vec<PathBuf> = ["1", "2", "5"].map(|n| folder.path(n).into()).to_vec();
    for (n, path) in ["1", "2", "5"].iter().zip(&paths) {
        quantize(&["-q", &nano, path.to_str().unwrap(), "Q4_K_M", n]);
    }
    let files: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(files[0] == files[1] && files[0] == files[2]);
}
