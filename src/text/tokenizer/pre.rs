//! How BPE cuts a text into words before it merges: the `tokenizer.ggml.pre` names and their patterns.
//!
//! The patterns are those of the models' own tokenizers in the form that llama.cpp runs, so that the tokens are the
//! same. Several in a row: each cuts the pieces that the one before left.

use crate::{Error, ErrorKind, Result, bail};
use mmq_kernels::stopped;
use regex_automata::hybrid::regex::{Cache, Regex};
use regex_automata::{Anchored, Input};
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// What a `pre` name stands for.
struct Kind {
    names: &'static [&'static str],
    steps: &'static [Step],
    flags: u8,
}

/// A word that is a token stays whole, whatever the merges say.
const IGNORE_MERGES: u8 = 1;
/// BOS comes first unless the file says otherwise.
const ADD_BOS: u8 = 2;
/// Merges work on characters with `▁` for the space, and bytes are `<0x0A>`, as in SentencePiece.
const RAW: u8 = 4;
/// BOS comes first whatever the file says, and a run of newlines that is a token stays whole.
const GEMMA: u8 = 8;
/// Text is brought to Unicode's composed form (NFC) first, as Qwen's own tokenizers do and llama.cpp does not.
const NFC: u8 = 16;

/// One pass over the pieces.
#[derive(Clone, Copy)]
enum Step {
    /// Every match is a piece, and so is what lies between.
    Split(&'static str),
    /// The same, and a run of white space leaves its last character to the word that follows (`\s+(?!\S)`).
    Words(&'static str),
    /// As `Words`, but a run that ends in a newline stays whole: the pattern took it by `\s*[\r\n]+`.
    Lines(&'static str),
    /// Every match is a piece, but of a run of white space that has no newline, what is left of it is taken by powers of
    /// two, 512 at most, and its last character goes to the word that follows.
    Powers(&'static str),
    /// Groups of three digits, counted from the right.
    DigitGroups,
    /// Cuts before each group of three digits (`\d`), counted from the right, and nowhere else.
    Thousands(&'static str),
}
use Step::{DigitGroups, Lines, Powers, Split, Thousands, Words};

const GPT2: Step = Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+");
const LLAMA3: Step = Lines(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
const QWEN2: Step = Lines(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
);
/// GPT-4o and its kin tell capitals from small letters, of which only ASCII's are told apart here.
const GPT4O: Step = Lines(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
);
const DEEPSEEK3: Step = Lines(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##,
);
const CJK: Step = Split("[一-龥぀-ゟ゠-ヿ]+");
/// White space within the ranges is no part of them, here and in `deepseek-llm`'s punctuation.
const DEEPSEEK_CJK: Step = Split(r"[[一-龥ࠀ-一가-퟿]--\s]+");
const DIGIT: Step = Split(r"\p{N}");
const DIGITS_3: Step = Split(r"\p{N}{1,3}");
const NEWLINES: Step = Split(r"[^\n]+|[\n]+");
const BLOOM: Step = Split(r" ?[^(\s|.,!?…。，、।۔،)]+");

/// Every name that llama.cpp knows for a text model.
const KINDS: &[Kind] = &[
    Kind {
        names: &["default"],
        steps: &[Split(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, Split(r"\p{N}+"), Split("[0-9][0-9][0-9]")],
        flags: 0,
    },
    Kind {
        names: &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        steps: &[LLAMA3],
        flags: IGNORE_MERGES | ADD_BOS,
    },
    Kind { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], steps: &[LLAMA3], flags: 0 },
    Kind { names: &["glm4", "glm5"], steps: &[LLAMA3], flags: IGNORE_MERGES },
    Kind {
        names: &["gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"],
        steps: &[GPT2],
        flags: 0,
    },
    Kind {
        names: &[
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "trillion",
        ],
        steps: &[GPT2],
        flags: 0,
    },
    Kind { names: &["granite-docling"], steps: &[GPT2], flags: 0 },
    Kind {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[DIGIT, GPT2],
        flags: 0,
    },
    Kind { names: &["qwen2"], steps: &[QWEN2], flags: NFC },
    Kind {
        names: &["deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        steps: &[QWEN2],
        flags: 0,
    },
    Kind {
        names: &["qwen35"],
        steps: &[Lines(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        )],
        flags: 0,
    },
    Kind { names: &["laguna"], steps: &[NEWLINES, QWEN2], flags: 0 },
    Kind {
        names: &["deepseek-llm"],
        steps: &[
            Split("[\r\n]"),
            Split(
                r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            ),
            Split(r"\s?[[!-/:-~！-／：-～‘-‟　-。]--\s]+"),
            Split(r"\s+$"),
            DEEPSEEK_CJK,
            Split(r"\p{N}+"),
        ],
        flags: 0,
    },
    Kind {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[DIGITS_3, CJK, DEEPSEEK3],
        flags: 0,
    },
    Kind {
        names: &["spark2_5"],
        steps: &[
            DIGITS_3,
            CJK,
            Words(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+"##,
            ),
            DIGIT,
        ],
        flags: 0,
    },
    Kind {
        names: &["deepseek-coder"],
        steps: &[Split("[\r\n]"), Split(r"\s?\p{L}+"), Split(r"\s?\p{P}+"), DEEPSEEK_CJK, DIGIT],
        flags: 0,
    },
    Kind {
        names: &["youtu"],
        steps: &[
            Split("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"),
            Lines(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
            ),
        ],
        flags: IGNORE_MERGES,
    },
    Kind { names: &["falcon"], steps: &[Split(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, Split("[0-9][0-9][0-9]")], flags: 0 },
    Kind { names: &["poro-chat", "bloom", "gpt3-finnish"], steps: &[BLOOM], flags: 0 },
    Kind { names: &["viking"], steps: &[BLOOM, DIGIT], flags: 0 },
    Kind {
        names: &["tekken"],
        steps: &[Lines(
            r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
        )],
        flags: IGNORE_MERGES | ADD_BOS,
    },
    Kind {
        names: &["chameleon"],
        steps: &[
            Split("<sentinel:[0-9]+>"),
            Split("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"),
            Split(r"([\t\n]|    |  )"),
            DIGIT,
            Split(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        flags: ADD_BOS,
    },
    Kind { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], steps: &[GPT4O], flags: 0 },
    Kind {
        names: &["granite-embed-multi-97m"],
        steps: &[Lines(
            r"[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]--[a-z]]*[[\p{L}\p{M}]--[A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]--[a-z]]+[[\p{L}\p{M}]--[A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
        )],
        flags: IGNORE_MERGES,
    },
    Kind {
        names: &["tiny_aya", "cohere2moe"],
        steps: &[
            DigitGroups,
            Lines(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
            ),
        ],
        flags: 0,
    },
    Kind {
        names: &["kimi-k2"],
        steps: &[Lines(
            r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]+|[^\r\n\p{L}\p{N}]?[\p{L}--[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]]+(?:'[sSſ]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        )],
        flags: 0,
    },
    Kind { names: &["superbpe"], steps: &[Split(r"\p{N}+"), Thousands(r"\d+")], flags: 0 },
    Kind {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[Lines(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+",
        )],
        flags: 0,
    },
    Kind {
        names: &["seed-coder"],
        steps: &[Lines(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+",
        )],
        flags: 0,
    },
    Kind {
        names: &["ufakzeka"],
        steps: &[Lines(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")],
        flags: 0,
    },
    Kind {
        names: &["afmoe"],
        steps: &[DigitGroups, Split("[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"), DEEPSEEK3],
        flags: 0,
    },
    Kind {
        names: &["exaone-moe"],
        steps: &[Lines(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+",
        )],
        flags: 0,
    },
    Kind { names: &["gemma4", "granite-embed-multi-311m"], steps: &[NEWLINES], flags: RAW | GEMMA },
    Kind { names: &["sarvam-moe"], steps: &[NEWLINES], flags: RAW },
    Kind {
        names: &["minicpm5"],
        steps: &[
            DIGITS_3,
            Lines(
                r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
            ),
        ],
        flags: IGNORE_MERGES,
    },
    Kind {
        names: &["jais-2"],
        steps: &[Powers(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        )],
        flags: 0,
    },
];

/// Every known name.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    KINDS.iter().flat_map(|k| k.names).copied()
}

/// A compiled pre-tokenizer.
pub(super) struct Pre {
    name: String,
    steps: Vec<(Step, Option<Pattern>)>,
    flags: u8,
}

impl Pre {
    /// The pre-tokenizer called `name`; an empty name is `default`. An unknown one is an error that names it.
    pub fn new(file: &str, name: &str) -> Result<Pre> {
        let name = if name.is_empty() { "default" } else { name };
        let Some(kind) = KINDS.iter().find(|k| k.names.contains(&name)) else {
            bail!(Unsupported, "{file}: tokenizer.ggml.pre: unknown pre-tokenizer \"{name}\"");
        };
        let compile = |&step: &Step| -> Result<(Step, Option<Pattern>)> {
            let pattern = match step {
                Split(p) | Words(p) | Lines(p) | Powers(p) | Thousands(p) => p,
                DigitGroups => return Ok((step, None)),
            };
            let pattern = Pattern::new(pattern)
                .map_err(|e| Error::new(ErrorKind::Unsupported, format!("{file}: pre-tokenizer \"{name}\": {e}")))?;
            Ok((step, Some(pattern)))
        };
        let steps = kind.steps.iter().map(compile).collect::<Result<_>>()?;
        Ok(Pre { name: name.to_owned(), steps, flags: kind.flags })
    }

    /// Whether words are spelled in GPT-2's byte alphabet before the merges.
    pub fn byte_encode(&self) -> bool {
        self.flags & RAW == 0
    }

    /// Whether BOS comes first where the file does not say.
    pub fn add_bos(&self) -> bool {
        self.flags & (ADD_BOS | GEMMA) != 0
    }

    /// Whether BOS comes first whatever the file says.
    pub fn force_bos(&self) -> bool {
        self.flags & GEMMA != 0
    }

    /// Whether a file without merges is broken.
    pub fn needs_merges(&self) -> bool {
        self.name != "kimi-k2"
    }

    /// Whether `word`, if it is a token, skips the merges.
    pub fn whole_word_first(&self, word: &str) -> bool {
        self.flags & IGNORE_MERGES != 0 || (self.flags & GEMMA != 0 && word.bytes().all(|b| b == b'\n'))
    }

    /// `text` as the vocabulary spells it.
    pub fn normalize<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.flags & NFC == 0 || is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
    }

    /// Calls `word` with every piece of `text`, in order; together they are `text`.
    pub fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        split(&self.steps, text, &mut word);
    }
}

/// A pattern without what only backtracking finds, and the states that it met so far.
struct Pattern {
    regex: Regex,
    cache: Mutex<Cache>,
}

impl Pattern {
    fn new(pattern: &str) -> std::result::Result<Pattern, String> {
        // The causes say what is wrong with the pattern.
        let regex =
            Regex::new(pattern).map_err(|e| std::error::Error::source(&e).map_or(e.to_string(), |s| s.to_string()))?;
        let cache = Mutex::new(regex.create_cache());
        Ok(Pattern { regex, cache })
    }

    /// Where the first match from `pos` on begins and ends.
    fn find(&self, text: &str, pos: usize) -> Option<(usize, usize)> {
        // States are added to, or all dropped: there are no broken ones that a panic could leave.
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let input = Input::new(text).range(pos..);
        // Mostly the next word begins where the last one ended, and its beginning need not be looked for.
        let here = input.clone().anchored(Anchored::Yes);
        // A search gives up on nothing that is asked for here.
        if let Ok(Some(m)) = self.regex.forward().try_search_fwd(cache.forward_mut(), &here) {
            return Some((pos, m.offset()));
        }
        let found = self.regex.try_search(&mut cache, &input).ok()??;
        Some((found.start(), found.end()))
    }
}

/// Cuts `text` by the first step and each piece by the rest.
fn split<'t>(steps: &[(Step, Option<Pattern>)], text: &'t str, word: &mut impl FnMut(&'t str)) {
    let Some(((step, pattern), rest)) = steps.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut start = 0;
    let mut cut = |from: usize, to: usize| {
        if from < to {
            split(rest, &text[from..to], &mut *word);
        }
    };
    let Some(pattern) = pattern else {
        digit_groups(text, cut);
        return;
    };
    let mut pos = 0;
    while pos < text.len()
        && !stopped()
        && let Some((first, mut end)) = pattern.find(text, pos)
    {
        match step {
            Thousands(_) => {
                let n = text[first..end].chars().count();
                for (i, (at, _)) in text[first..end].char_indices().enumerate() {
                    if (n - i).is_multiple_of(3) {
                        cut(start, first + at);
                        start = first + at;
                    }
                }
                pos = end;
                continue;
            }
            Words(_) | Lines(_) => end = leave_space(text, first, end, matches!(step, Lines(_))),
            Powers(_) => end = power_of_space(text, first, end),
            Split(_) | DigitGroups => {}
        }
        cut(start, first);
        cut(first, end);
        start = end;
        pos = end;
    }
    cut(start, text.len());
}

/// Where the match `start..end` ends if a run of white space is taken by powers of two.
fn power_of_space(text: &str, start: usize, end: usize) -> usize {
    let run = &text[start..end];
    if run.ends_with(['\r', '\n']) || !run.chars().all(char::is_whitespace) {
        return end;
    }
    let free = run.chars().count() - usize::from(end < text.len());
    let n = if free < 2 { 1 } else { 1 << free.ilog2().min(9) };
    run.char_indices().nth(n).map_or(end, |(at, _)| start + at)
}

/// Where the match `start..end` ends if a run of white space before a word leaves its last character to that word.
fn leave_space(text: &str, start: usize, end: usize, newline_stays: bool) -> usize {
    if end == text.len() {
        return end;
    }
    let mut chars = text[start..end].chars();
    match chars.next_back() {
        Some('\r' | '\n') if newline_stays => end,
        Some(last) if last.is_whitespace() && !chars.as_str().is_empty() && chars.all(char::is_whitespace) => {
            end - last.len_utf8()
        }
        _ => end,
    }
}

/// Cuts each run of digits into groups of three from its end.
fn digit_groups(text: &str, mut cut: impl FnMut(usize, usize)) {
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some(&(first, c)) = chars.peek() {
        if !c.is_numeric() {
            chars.next();
            continue;
        }
        let mut digits = Vec::new();
        while let Some(&(at, c)) = chars.peek()
            && c.is_numeric()
        {
            digits.push(at);
            chars.next();
        }
        cut(start, first);
        start = first;
        for (i, &at) in digits.iter().enumerate().skip(1) {
            if (digits.len() - i) % 3 == 0 {
                cut(start, at);
                start = at;
            }
        }
        let end = chars.peek().map_or(text.len(), |&(at, _)| at);
        cut(start, end);
        start = end;
    }
    cut(start, text.len());
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on.
pub(super) fn byte_char(byte: u8) -> char {
    let code = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => byte as u32,
        0..=0x20 => 0x100 + byte as u32,
        0x7F..=0xA0 => 0x121 + (byte - 0x7F) as u32,
        0xAD => 0x143,
    };
    char::from_u32(code).expect("all below the surrogates")
}

/// The byte that `c` stands for in GPT-2's alphabet.
pub(super) fn char_byte(c: char) -> Option<u8> {
    let byte = match c as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => code,
        code @ 0x100..=0x120 => code - 0x100,
        code @ 0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    Some(byte as u8)
}
