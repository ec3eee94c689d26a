//! llama.cpp's command line as clap can read it: flags of several letters spelled out, flags without a meaning here
//! taken out, flags that mmq lacks refused by name; and escapes in prompts.

use crate::{Result, bail};
use std::ffi::OsString;

/// What follows a flag.
#[derive(Clone, Copy, PartialEq)]
pub enum Takes {
    Nothing,
    Value,
    Two,
    /// `on`, `off` or `auto`, or nothing.
    Switch,
}

#[derive(Clone, Copy)]
pub enum Meaning {
    /// Another spelling of one of mmq's own flags.
    Long(&'static str),
    /// Changes nothing that the user could miss.
    Nothing,
    /// Changes nothing, which may surprise, unless the value is one of these.
    Note(&'static [&'static str], &'static str),
    /// Would change the answer, and mmq cannot do it.
    Missing(&'static str),
}

use Meaning::{Long, Missing, Note};
use Takes::{Switch, Two, Value};

const NOTHING: Meaning = Meaning::Nothing;
const ON_CPU: Meaning = Note(&["0", "none", "auto", "off", "cpu"], "mmq runs on the processor for now");
const NOT_PINNED: Meaning = Note(&[], "threads are not pinned to cores");
const ONE_PROMPT: Meaning = Note(&[], "`mmq run` answers one prompt and ends");
const NO_DRAFT: Meaning = Note(&[], "there is no speculative decoding yet");
const NO_LOG: Meaning = Note(&[], "no log file is written");
const NO_DOWNLOAD: Meaning = Missing("mmq downloads nothing: give a file with -m, and its vision part with --mmproj");
const NO_GRAMMAR: Meaning = Missing("answers cannot be held to a grammar");
const NO_ROPE: Meaning = Missing("RoPE is scaled as the model file says");
const NO_LORA: Meaning = Missing("adapters cannot be applied");

const NO_LOGIT_FILE: Meaning = Missing("logits are never written to a file: give the base model itself with --base");
const NO_TASKS: Meaning = Missing("answers can be scored with --rows");

/// Spellings of a flag, what follows it, what becomes of it.
pub type Flag = (&'static [&'static str], Takes, Meaning);

/// llama-bench's flags that are not flags of `mmq bench` in this spelling.
pub const BENCH: &[Flag] = &[
    (&["-mm"], Value, Long("--mmproj")),
    (&["-pg"], Value, Long("--prompt-gen")),
    (&["-ub"], Value, Long("--ubatch-size")),
    (&["-ctk"], Value, Long("--cache-type-k")),
    (&["-ctv"], Value, Long("--cache-type-v")),
    (&["-lm"], Value, Long("--load-mode")),
    (&["-mmp", "--mmap"], Value, Note(&["1"], "--load-mode says how weights come into memory")),
    (&["-rtr", "--run-time-repack"], Value, Note(&["0"], "--load-mode says how weights come into memory")),
    (&["-ngl", "--n-gpu-layers", "-dev", "--device"], Value, ON_CPU),
    (&["-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu"], Value, ON_CPU),
    (&["-ncmoe", "--n-cpu-moe", "-ot", "--override-tensor", "-nkvo", "--no-kv-offload"], Value, NOTHING),
    (&["-nopo", "--no-op-offload", "--no-host", "--repack"], Value, NOTHING),
    (&["-fitt", "--fit-target", "-fitc", "--fit-ctx"], Value, NOTHING),
    (&["-fa", "--flash-attn"], Switch, NOTHING),
    (&["-C", "--cpu-mask", "--numa"], Value, NOT_PINNED),
    (&["--cpu-strict", "--prio", "--poll"], Value, NOTHING),
    (&["-lzm", "--lazy-mode", "-dio", "--direct-io"], Value, NOTHING),
    (&["-embd", "--embeddings"], Value, Note(&["0"], "the last token always goes through the head")),
    (&["--delay"], Value, Note(&["0"], "tests follow each other at once")),
    (&["-oe", "--output-err"], Value, Note(&["none"], "results go to standard output")),
    (&["-v", "--verbose", "--progress", "--offline"], Takes::Nothing, NOTHING),
    (&["--list-devices"], Takes::Nothing, Missing("mmq runs on the processor")),
    (&["-rpc", "--rpc"], Value, Missing("mmq runs on this machine alone")),
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token"], Value, NO_DOWNLOAD),
];

/// llama-perplexity's flags that are not flags of `mmq perplexity` in this spelling.
pub const PERPLEXITY: &[Flag] = &[
    (&["-mm"], Value, Long("--mmproj")),
    (&["-ub"], Value, Long("--ubatch-size")),
    (&["-ctk"], Value, Long("--cache-type-k")),
    (&["-ctv"], Value, Long("--cache-type-v")),
    (&["--kl-divergence-base", "--save-all-logits"], Value, NO_LOGIT_FILE),
    (&["--hellaswag", "--winogrande", "--multiple-choice"], Takes::Nothing, NO_TASKS),
    (&["--hellaswag-tasks", "--winogrande-tasks", "--multiple-choice-tasks"], Value, NO_TASKS),
    (&["--ppl-output-type"], Value, Note(&["0"], "there is one form of output, and --json")),
    (&["-ngl", "--gpu-layers", "--n-gpu-layers", "-dev", "--device"], Value, ON_CPU),
    (&["-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu"], Value, ON_CPU),
    (&["-kvo", "--kv-offload", "-nkvo", "--no-kv-offload", "--no-host"], Takes::Nothing, NOTHING),
    (&["--op-offload", "--no-op-offload", "--repack", "-nr", "--no-repack"], Takes::Nothing, NOTHING),
    (&["-fa", "--flash-attn", "-fit", "--fit"], Switch, NOTHING),
    (&["-tb", "--threads-batch"], Value, Note(&["-1"], "batches take as many threads as -t says")),
    (&["-C", "--cpu-mask", "-Cr", "--cpu-range", "--numa"], Value, NOT_PINNED),
    (&["--cpu-strict", "--prio", "--poll", "-np", "--parallel", "-s", "--seed"], Value, NOTHING),
    (&["--mmap", "--no-mmap", "--no-warmup", "--warmup", "-v", "--verbose", "--no-escape"], Takes::Nothing, NOTHING),
    (&["--mlock"], Takes::Nothing, Note(&[], "memory is not locked")),
    (&["-lv", "--verbosity", "--log-verbosity"], Value, NOTHING),
    (&["--override-kv"], Value, Missing("metadata is taken as the model file has it")),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], Value, NO_ROPE),
    (&["--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled"], Value, NO_LORA),
    (
        &["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token", "-mu", "--model-url"],
        Value,
        NO_DOWNLOAD,
    ),
];

/// llama-imatrix's flags that are not flags of `mmq imatrix` in this spelling.
pub const IMATRIX: &[Flag] = &[
    (&["-mm"], Value, Long("--mmproj")),
    (&["-ub"], Value, Long("--ubatch-size")),
    (&["-ctk"], Value, Long("--cache-type-k")),
    (&["-ctv"], Value, Long("--cache-type-v")),
    (&["-ofreq"], Value, Long("--output-frequency")),
    (&["--ppl"], Takes::Nothing, NOTHING),
    (&["-e", "--escape"], Takes::Nothing, Note(&[], "the text is taken as it is")),
    (&["-ngl", "--gpu-layers", "--n-gpu-layers", "-dev", "--device"], Value, ON_CPU),
    (&["-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu"], Value, ON_CPU),
    (&["-ot", "--override-tensor", "-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn"], Value, NOTHING),
    (&["-cmoe", "--cpu-moe", "-kvo", "--kv-offload", "-nkvo", "--no-kv-offload"], Takes::Nothing, NOTHING),
    (&["--no-host", "--op-offload", "--no-op-offload", "--repack", "-nr", "--no-repack"], Takes::Nothing, NOTHING),
    (&["-fa", "--flash-attn", "-fit", "--fit"], Switch, NOTHING),
    (&["-fitt", "--fit-target", "-fitc", "--fit-ctx", "-dt", "--defrag-thold"], Value, NOTHING),
    (&["-lm", "--load-mode", "-lzm", "--lazy-mode"], Value, NOTHING),
    (&["-tb", "--threads-batch"], Value, Note(&["-1"], "batches take as many threads as -t says")),
    (&["-C", "--cpu-mask", "-Cr", "--cpu-range", "-Cb", "--cpu-mask-batch"], Value, NOT_PINNED),
    (&["-Crb", "--cpu-range-batch", "--numa"], Value, NOT_PINNED),
    (&["--cpu-strict", "--cpu-strict-batch", "--prio", "--prio-batch", "--poll", "--poll-batch"], Value, NOTHING),
    (&["-np", "--parallel", "-s", "--seed", "-n", "--predict", "--n-predict", "--keep"], Value, NOTHING),
    (
        &["--mmap", "--no-mmap", "--no-warmup", "--warmup", "--no-escape", "--perf", "--no-perf"],
        Takes::Nothing,
        NOTHING,
    ),
    (&["-v", "--verbose", "--log-verbose", "--log-disable", "--swa-full", "--offline"], Takes::Nothing, NOTHING),
    (&["--mlock"], Takes::Nothing, Note(&[], "memory is not locked")),
    (&["--check-tensors"], Takes::Nothing, Note(&[], "weights are not searched for NaN")),
    (&["-lv", "--verbosity", "--log-verbosity"], Value, NOTHING),
    (&["--log-file"], Value, NO_LOG),
    (&["-bf", "--binary-file"], Value, Missing("texts are UTF-8 (-f)")),
    (&["--rpc"], Value, Missing("mmq runs on this machine alone")),
    (&["--override-kv"], Value, Missing("metadata is taken as the model file has it")),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], Value, NO_ROPE),
    (&["--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled"], Value, NO_LORA),
    (
        &["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token", "-mu", "--model-url", "-dr"],
        Value,
        NO_DOWNLOAD,
    ),
];

/// llama.cpp's flags that are not flags of `mmq run` in this spelling.
pub const RUN: &[Flag] = &[
    (&["-mm"], Value, Long("--mmproj")),
    (&["-sys"], Value, Long("--system-prompt")),
    (&["-sysf"], Value, Long("--system-prompt-file")),
    (&["-ub"], Value, Long("--ubatch-size")),
    (&["-ctk"], Value, Long("--cache-type-k")),
    (&["-ctv"], Value, Long("--cache-type-v")),
    (&["-no-cnv"], Takes::Nothing, Long("--no-conversation")),
    // Where and how it runs.
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], Value, ON_CPU),
    (&["-dev", "--device", "-mmdev", "--mmproj-device"], Value, ON_CPU),
    (&["-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu"], Value, ON_CPU),
    (&["-ot", "--override-tensor", "-ncmoe", "--n-cpu-moe", "-ncffn", "--n-cpu-ffn"], Value, NOTHING),
    (&["-cmoe", "--cpu-moe", "--mmproj-offload", "--no-mmproj-offload"], Takes::Nothing, NOTHING),
    (&["-kvo", "--kv-offload", "-nkvo", "--no-kv-offload", "--no-host"], Takes::Nothing, NOTHING),
    (&["--op-offload", "--no-op-offload", "--repack"], Takes::Nothing, NOTHING),
    (&["-fa", "--flash-attn"], Switch, NOTHING),
    (&["-fit", "--fit"], Switch, NOTHING),
    (&["-fitt", "--fit-target", "-fitc", "--fit-ctx"], Value, NOTHING),
    (&["--rpc"], Value, Missing("mmq runs on this machine alone")),
    (&["-tb", "--threads-batch"], Value, Note(&["-1"], "prompts take as many threads as answers (-t)")),
    (&["-C", "--cpu-mask", "-Cr", "--cpu-range", "-Cb", "--cpu-mask-batch"], Value, NOT_PINNED),
    (&["-Crb", "--cpu-range-batch", "--numa"], Value, NOT_PINNED),
    (&["--cpu-strict", "--cpu-strict-batch", "--prio", "--prio-batch", "--poll", "--poll-batch"], Value, NOTHING),
    // Files and memory.
    (&["-lm"], Value, Long("--load-mode")),
    (&["-rtr", "--run-time-repack", "--no-mmap"], Takes::Nothing, Long("--load-mode=repack")),
    (&["--mmap", "-nr", "--no-repack"], Takes::Nothing, Long("--load-mode=mmap")),
    (&["-lzm", "--lazy-mode"], Value, NOTHING),
    (&["--mlock"], Takes::Nothing, Note(&[], "memory is not locked")),
    (&["--no-direct-io", "-ndio", "--direct-io", "-dio"], Takes::Nothing, NOTHING),
    (&["--check-tensors"], Takes::Nothing, Note(&[], "weights are not searched for NaN")),
    (&["--warmup", "--no-warmup", "--offline", "--mmproj-auto"], Takes::Nothing, NOTHING),
    (&["--no-mmproj-auto"], Takes::Nothing, Long("--no-mmproj")),
    (&["--swa-full", "-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified"], Takes::Nothing, NOTHING),
    (&["-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", "-cms", "--checkpoint-min-step"], Value, NOTHING),
    (&["-cram", "--cache-ram", "-dt", "--defrag-thold", "--keep", "--cache-reuse"], Value, NOTHING),
    (&["-np", "--parallel", "-ns", "--sequences", "-a", "--alias"], Value, NOTHING),
    (&["-cb", "--cont-batching", "-nocb", "--no-cont-batching"], Takes::Nothing, NOTHING),
    (&["-lcs", "--lookup-cache-static"], Value, NO_DRAFT),
    (&["-lcd", "--lookup-cache-dynamic"], Value, NO_DRAFT),
    (&["--override-kv"], Value, Missing("metadata is taken as the model file has it")),
    // Conversation.
    (&["-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"], Takes::Nothing, ONE_PROMPT),
    (&["-st", "--single-turn", "-mli", "--multiline-input", "--simple-io"], Takes::Nothing, NOTHING),
    (&["--jinja", "-e", "--escape", "--no-display-prompt"], Takes::Nothing, NOTHING),
    (&["--no-jinja"], Takes::Nothing, Note(&[], "a Jinja template in the model file is run as such")),
    (&["--display-prompt", "--verbose-prompt"], Takes::Nothing, Note(&[], "the prompt is not printed")),
    (&["--chat-template-kwargs"], Value, Missing("templates take no arguments of their own")),
    (&["-rea", "--reasoning", "--reasoning-effort", "--reasoning-budget"], Value, Missing("reasoning is not steered")),
    (&["--reasoning-budget-message"], Value, Missing("reasoning is not steered")),
    (&["--reasoning-format"], Value, Note(&["none"], "reasoning is printed with the answer")),
    (&["-sp", "--special"], Takes::Nothing, Missing("control tokens are never printed")),
    (&["--in-prefix", "--in-suffix"], Value, Missing("write it into the prompt")),
    (&["--in-prefix-bos", "--spm-infill"], Takes::Nothing, Missing("write it into the prompt")),
    (&["-bf", "--binary-file"], Value, Missing("prompts are UTF-8 text (-f)")),
    (&["-gan", "--grp-attn-n", "-gaw", "--grp-attn-w"], Value, Missing("there is no self-extend")),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], Value, NO_ROPE),
    (&["--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor"], Value, NO_ROPE),
    (&["--yarn-beta-slow", "--yarn-beta-fast"], Value, NO_ROPE),
    // Pictures and the like.
    (&["--audio"], Value, Missing("mmq does not hear")),
    (&["--video"], Value, Missing("give pictures of it with --image")),
    (
        &["--video-fps", "--video-timestamp-interval", "--video-ffmpeg-dir"],
        Value,
        Missing("give pictures with --image"),
    ),
    (&["--image-min-tokens", "--image-max-tokens"], Value, Note(&[], "--image-tokens N makes them fewer")),
    (&["--mtmd-batch-max-tokens"], Value, NOTHING),
    // Models from elsewhere.
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token"], Value, NO_DOWNLOAD),
    (&["-mu", "--model-url", "-mmu", "--mmproj-url", "-dr", "--docker-repo"], Value, NO_DOWNLOAD),
    (&["-cl", "--cache-list"], Takes::Nothing, NO_DOWNLOAD),
    // Constrained and adapted answers.
    (&["--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"], Value, NO_GRAMMAR),
    (&["--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled"], Value, NO_LORA),
    (&["--control-vector-layer-range"], Two, NO_LORA),
    (&["-bs", "--backend-sampling"], Takes::Nothing, NOTHING),
    // Speculative decoding changes the time, not the answer.
    (&["-md", "--model-draft", "--spec-draft-model", "-hfd", "--hf-repo-draft", "--spec-type"], Value, NO_DRAFT),
    (&["-td", "--threads-draft", "-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft"], Value, NOTHING),
    (&["-devd", "--device-draft", "-cd", "--ctx-size-draft", "-ctkd", "-ctvd"], Value, NOTHING),
    (&["--draft", "--draft-n", "--draft-max", "--draft-min", "--draft-n-min", "--draft-p-min"], Value, NOTHING),
    // What is printed.
    (&["-v", "--verbose", "--log-verbose", "--log-disable", "--log-jsonl", "--no-log-jsonl"], Takes::Nothing, NOTHING),
    (&["--log-prefix", "--no-log-prefix", "--log-timestamps", "--no-log-timestamps"], Takes::Nothing, NOTHING),
    (&["-lv", "--verbosity", "--log-verbosity", "-ptc", "--print-token-count"], Value, NOTHING),
    (&["--log-file", "--log-prompts-dir"], Value, NO_LOG),
    (&["-co", "--color", "--log-colors"], Switch, NOTHING),
    (&["--show-timings", "--perf"], Takes::Nothing, NOTHING),
    (&["-o", "--output", "--output-file"], Value, Missing("the answer goes to standard output: `> FILE`")),
    (&["--list-devices"], Takes::Nothing, Missing("mmq runs on the processor")),
];

/// A command line for clap, and what to tell the user about what was taken out of it.
pub struct Spelled {
    pub arguments: Vec<OsString>,
    pub notes: Vec<String>,
}

/// Spells out llama.cpp's `flags` in the arguments of a command; `takes_value` knows the flags of mmq that are followed by
/// a value, which stays as it is, as does all that follows `--`.
pub fn spell_out(
    flags: &[Flag],
    arguments: impl Iterator<Item = OsString>,
    takes_value: impl Fn(&str) -> bool,
) -> Result<Spelled> {
    let mut spelled = Spelled { arguments: Vec::new(), notes: Vec::new() };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            spelled.arguments.push(argument);
            spelled.arguments.extend(arguments.by_ref());
            break;
        }
        let text = argument.to_str().unwrap_or_default();
        let (name, attached) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (text, None),
        };
        let Some((_, takes, meaning)) = flags.iter().find(|(names, ..)| names.contains(&name)) else {
            let value = takes_value(text).then(|| arguments.next()).flatten();
            spelled.arguments.push(argument);
            spelled.arguments.extend(value);
            continue;
        };
        if let Long(long) = meaning {
            spelled.arguments.push(long.into());
            if *takes == Value {
                spelled.arguments.extend(arguments.next());
            }
            continue;
        }
        if let Missing(why) = meaning {
            bail!(Usage, "{name} is not supported yet: {why}");
        }
        let mut value = attached.map(OsString::from);
        let n = match takes {
            Value => 1,
            Two => 2,
            Switch => usize::from(arguments.peek().and_then(|next| next.to_str()).is_some_and(is_switch)),
            Takes::Nothing => 0,
        };
        for _ in usize::from(attached.is_some())..n {
            let Some(next) = arguments.next() else { bail!(Usage, "{name} needs a value") };
            value = Some(next);
        }
        if let Note(silent, why) = meaning
            && !value.is_some_and(|value| silent.iter().any(|silent| value == *silent))
        {
            spelled.notes.push(format!("{name} has no effect: {why}"));
        }
    }
    Ok(spelled)
}

fn is_switch(text: &str) -> bool {
    ["on", "off", "auto", "true", "false", "enabled", "disabled", "0", "1"].contains(&text)
}

/// The escapes `\n`, `\t`, `\r`, `\'`, `\"`, `\\` and `\xHH` in a prompt; anything else stays.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (c, n) = match rest.as_bytes().first() {
            Some(b'n') => ('\n', 1),
            Some(b't') => ('\t', 1),
            Some(b'r') => ('\r', 1),
            Some(b'\'') => ('\'', 1),
            Some(b'"') => ('"', 1),
            Some(b'\\') => ('\\', 1),
            Some(b'x') => match rest.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => (char::from(byte), 3),
                None => ('\\', 0),
            },
            _ => ('\\', 0),
        };
        out.push(c);
        rest = &rest[n..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spell(line: &str) -> Result<Spelled> {
        let takes_value = |flag: &str| ["-m", "-p"].contains(&flag);
        spell_out(RUN, line.split(' ').map(OsString::from), takes_value)
    }

    #[test]
    fn flags_of_llama_cpp() {
        let spelled = spell("run -ngl 99 -m x -fa -fa on -mm y --gpu-layers=0 --mlock -c 5").unwrap();
        assert_eq!(spelled.arguments, ["run", "-m", "x", "--mmproj", "y", "-c", "5"]);
        assert_eq!(spelled.notes.len(), 2, "{:?}", spelled.notes);
        assert!(spelled.notes[0].starts_with("-ngl ") && spelled.notes[1].starts_with("--mlock "));
    }

    #[test]
    fn values_and_what_follows_two_hyphens_stay() {
        assert_eq!(spell("-p -ngl -m -sys").unwrap().arguments, ["-p", "-ngl", "-m", "-sys"]);
        assert_eq!(spell("-- -ngl 9").unwrap().arguments, ["--", "-ngl", "9"]);
    }

    #[test]
    fn flags_that_mmq_lacks() {
        for line in ["--grammar x", "-m x -hf user/repo", "--lora=x"] {
            let Err(error) = spell(line) else { panic!("{line} passes") };
            assert!(error.to_string().contains("is not supported yet"), "{error}");
        }
        assert!(spell("-ngl").is_err_and(|e| e.to_string() == "-ngl needs a value"));
    }

    #[test]
    fn every_flag_is_listed_once() {
        for flags in [RUN, BENCH, PERPLEXITY, IMATRIX] {
            let mut names: Vec<&str> = flags.iter().flat_map(|(names, ..)| names.iter().copied()).collect();
            names.sort_unstable();
            let n = names.len();
            names.dedup();
            assert_eq!(names.len(), n);
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(r#"a\nb\t\\n\"\x41\q\"#), "a\nb\t\\n\"A\\q\\");
        assert_eq!(unescape(r"\x4"), r"\x4");
    }
}
