//! Templates that need no Jinja: LLaVA's and MiniGPT-4's, byte for byte as their authors wrote prompts, and those that
//! llama.cpp knows by name.

use super::{IMAGE_MARKER, Message, Parts, Role};
use crate::text::Dialect;
use std::borrow::Cow;

/// A way to write turns: each is a text before and one behind.
#[derive(Debug)]
pub(super) struct Style {
    /// The first is its name, the others are aliases.
    pub names: &'static [&'static str],
    start: &'static str,
    /// Said where no message of the system is given.
    default_system: &'static str,
    system: (&'static str, &'static str),
    user: (&'static str, &'static str),
    /// Before a user's message that follows the system's; `user.0` if none.
    user_after_system: Option<&'static str>,
    /// Before every user's message but the first; `user.0` if none.
    user_next: Option<&'static str>,
    assistant: (&'static str, &'static str),
    generate: &'static str,
    pub stop: &'static [&'static str],
    trim: bool,
    image: Image,
    /// Control tokens that what is said may hold; `None`: all of them.
    pub tags: Option<&'static [&'static str]>,
}

/// How a picture in front of a question is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Image {
    /// As the message has it.
    Plain,
    /// On a line of its own.
    Line,
    /// On a line of its own between `<im_start>` and `<im_end>`.
    Wrapped,
    /// Between `<Img>` and `</Img>`, wherever it stands, with a space behind those in front.
    Tagged,
    /// Between `<img>` and `</img>`, wherever it stands.
    Img,
    /// The same on a line of its own with its number in the conversation: `Picture 1: <img>…</img>`.
    Numbered,
}

const PLAIN: Style = Style {
    names: &["plain"],
    start: "",
    default_system: "",
    system: ("", ""),
    user: ("", ""),
    user_after_system: None,
    user_next: None,
    assistant: ("", ""),
    generate: "",
    stop: &[],
    trim: false,
    image: Image::Plain,
    tags: None,
};

const QWEN_VL_BASE: Style =
    Style { names: &["qwen_vl_base"], image: Image::Img, tags: Some(Dialect::Qwen.tags()), ..PLAIN };

const VICUNA: Style = Style {
    names: &["vicuna_v1", "vicuna", "llava"],
    default_system: "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.",
    system: ("", " "),
    user: ("USER: ", " "),
    assistant: ("ASSISTANT: ", "</s>"),
    generate: "ASSISTANT:",
    stop: &["</s>"],
    image: Image::Line,
    ..PLAIN
};

const CURIOUS_HUMAN: &str = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.";

const LLAVA_LLAMA_2: Style = Style {
    names: &["llava_llama_2"],
    default_system: "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language.",
    system: ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"),
    user: ("[INST] ", " [/INST]"),
    user_after_system: Some(""),
    user_next: Some("<s>[INST] "),
    assistant: (" ", " </s>"),
    stop: &["</s>"],
    image: Image::Line,
    ..PLAIN
};

const MINIGPT4: Style = Style {
    names: &["minigpt4"],
    default_system: "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. Please answer my questions.",
    system: ("", "###"),
    user: ("Human: ", "###"),
    assistant: ("Assistant: ", "###"),
    generate: "Assistant: ",
    // One token or two; the text is the same.
    stop: &["###"],
    image: Image::Tagged,
    ..PLAIN
};

const MINIGPT4_LLAMA_2: Style = Style {
    names: &["minigpt4_llama_2"],
    system: ("", ""),
    user: ("<s>[INST] ", ""),
    assistant: (" [/INST] ", ""),
    generate: " [/INST] ",
    stop: &["</s>"],
    ..MINIGPT4
};

const LLAMA_2: Style = Style {
    names: &["llama2"],
    system: ("[INST] ", "\n"),
    user: ("[INST] ", " [/INST]"),
    user_after_system: Some(""),
    assistant: ("", "</s>"),
    ..PLAIN
};

const LLAMA_2_SYS: Style = Style { names: &["llama2-sys"], system: ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n"), ..LLAMA_2 };

const MISTRAL_V3: Style = Style {
    names: &["mistral-v3"],
    system: ("[INST] ", "\n\n"),
    user: ("[INST] ", "[/INST]"),
    user_after_system: Some(""),
    assistant: (" ", "</s>"),
    ..PLAIN
};

const STYLES: &[Style] = &[
    VICUNA,
    Style { names: &["llava_v1"], default_system: CURIOUS_HUMAN, ..VICUNA },
    Style {
        names: &["llava_v0"],
        default_system: CURIOUS_HUMAN,
        system: ("", "###"),
        user: ("Human: ", "###"),
        assistant: ("Assistant: ", "###"),
        generate: "Assistant:",
        stop: &["###"],
        image: Image::Wrapped,
        ..PLAIN
    },
    MINIGPT4,
    MINIGPT4_LLAMA_2,
    Style {
        names: &["minigpt_v2"],
        // The tokenizer's, then the turn's own.
        start: "<s>",
        default_system: "",
        assistant: (" [/INST]", ""),
        generate: " [/INST]",
        ..MINIGPT4_LLAMA_2
    },
    LLAVA_LLAMA_2,
    Style { names: &["mistral_instruct", "mistral"], default_system: "", user_next: None, ..LLAVA_LLAMA_2 },
    Style {
        names: &["chatml_direct"],
        default_system: "Answer the questions.",
        system: ("<|im_start|>system\n", "<|im_end|>"),
        user: ("<|im_start|>user\n", "<|im_end|>"),
        assistant: ("<|im_start|>assistant\n", "<|im_end|>"),
        generate: "<|im_start|>assistant\n",
        stop: &["<|im_end|>"],
        image: Image::Line,
        ..PLAIN
    },
    PLAIN,
    QWEN_VL_BASE,
    Style {
        names: &["qwen_vl"],
        default_system: "You are a helpful assistant.",
        system: ("<|im_start|>system\n", "<|im_end|>\n"),
        user: ("<|im_start|>user\n", "<|im_end|>\n"),
        assistant: ("<|im_start|>assistant\n", "<|im_end|>\n"),
        generate: "<|im_start|>assistant\n",
        stop: &["<|im_end|>", "<|im_start|>"],
        image: Image::Numbered,
        ..QWEN_VL_BASE
    },
    Style {
        names: &["chatml"],
        system: ("<|im_start|>system\n", "<|im_end|>\n"),
        user: ("<|im_start|>user\n", "<|im_end|>\n"),
        assistant: ("<|im_start|>assistant\n", "<|im_end|>\n"),
        generate: "<|im_start|>assistant\n",
        stop: &["<|im_end|>"],
        ..PLAIN
    },
    LLAMA_2,
    LLAMA_2_SYS,
    Style { names: &["llama2-sys-bos"], user_next: Some("<s>[INST] "), ..LLAMA_2_SYS },
    Style { names: &["llama2-sys-strip"], trim: true, ..LLAMA_2_SYS },
    Style { names: &["mistral-v1"], system: (" [INST] ", "\n\n"), user: (" [INST] ", " [/INST]"), ..MISTRAL_V3 },
    MISTRAL_V3,
    Style {
        names: &["mistral-v3-tekken"],
        system: ("[INST]", "\n\n"),
        user: ("[INST]", "[/INST]"),
        assistant: ("", "</s>"),
        ..MISTRAL_V3
    },
    Style {
        names: &["mistral-v7"],
        system: ("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"),
        user_after_system: None,
        ..MISTRAL_V3
    },
    Style {
        names: &["mistral-v7-tekken"],
        system: ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        user: ("[INST]", "[/INST]"),
        user_after_system: None,
        assistant: ("", "</s>"),
        ..MISTRAL_V3
    },
    Style {
        names: &["llama3"],
        system: ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        user: ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        assistant: ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        generate: "<|start_header_id|>assistant<|end_header_id|>\n\n",
        trim: true,
        ..PLAIN
    },
    Style {
        names: &["gemma"],
        system: ("<start_of_turn>user\n", "\n\n"),
        user: ("<start_of_turn>user\n", "<end_of_turn>\n"),
        user_after_system: Some(""),
        assistant: ("<start_of_turn>model\n", "<end_of_turn>\n"),
        generate: "<start_of_turn>model\n",
        trim: true,
        ..PLAIN
    },
    Style {
        names: &["phi3"],
        system: ("<|system|>\n", "<|end|>\n"),
        user: ("<|user|>\n", "<|end|>\n"),
        assistant: ("<|assistant|>\n", "<|end|>\n"),
        generate: "<|assistant|>\n",
        ..PLAIN
    },
    Style {
        names: &["phi4"],
        system: ("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        user: ("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        assistant: ("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
        generate: "<|im_start|>assistant<|im_sep|>",
        ..PLAIN
    },
    Style {
        names: &["falcon3"],
        system: ("<|system|>\n", "\n"),
        user: ("<|user|>\n", "\n"),
        assistant: ("<|assistant|>\n", "\n"),
        generate: "<|assistant|>\n",
        ..PLAIN
    },
    Style {
        names: &["zephyr"],
        system: ("<|system|>\n", "<|endoftext|>\n"),
        user: ("<|user|>\n", "<|endoftext|>\n"),
        assistant: ("<|assistant|>\n", "<|endoftext|>\n"),
        generate: "<|assistant|>\n",
        ..PLAIN
    },
    Style {
        names: &["openchat"],
        system: ("", "<|end_of_turn|>"),
        user: ("GPT4 Correct User: ", "<|end_of_turn|>"),
        assistant: ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        generate: "GPT4 Correct Assistant:",
        ..PLAIN
    },
    Style {
        names: &["vicuna-orca"],
        system: ("SYSTEM: ", "\n"),
        user: ("USER: ", "\n"),
        assistant: ("ASSISTANT: ", "</s>\n"),
        generate: "ASSISTANT:",
        ..PLAIN
    },
    Style {
        names: &["deepseek"],
        user: ("### Instruction:\n", "\n"),
        assistant: ("### Response:\n", "\n<|EOT|>\n"),
        generate: "### Response:\n",
        ..PLAIN
    },
    Style {
        names: &["deepseek2"],
        system: ("", "\n\n"),
        user: ("User: ", "\n\n"),
        assistant: ("Assistant: ", "<｜end▁of▁sentence｜>"),
        generate: "Assistant:",
        ..PLAIN
    },
    Style {
        names: &["deepseek3"],
        system: ("", "\n\n"),
        user: ("<｜User｜>", ""),
        assistant: ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        generate: "<｜Assistant｜>",
        ..PLAIN
    },
    Style {
        names: &["command-r"],
        system: ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        user: ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        assistant: ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        generate: "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        trim: true,
        ..PLAIN
    },
    Style {
        names: &["chatglm4"],
        start: "[gMASK]<sop>",
        system: ("<|system|>\n", ""),
        user: ("<|user|>\n", ""),
        assistant: ("<|assistant|>\n", ""),
        generate: "<|assistant|>\n",
        ..PLAIN
    },
    Style { names: &["minicpm"], user: ("<用户>", "<AI>"), trim: true, ..PLAIN },
];

/// The style called `name`.
pub(super) fn find(name: &str) -> Option<&'static Style> {
    STYLES.iter().find(|s| s.names.contains(&name))
}

/// The names of all styles, without aliases.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    STYLES.iter().map(|s| s.names[0])
}

impl Style {
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Parts {
        let mut out = Parts::default();
        out.frame(self.start);
        let mut n_pictures = 0;
        let mut turn = |(before, after): (&str, &str), content: &str| {
            out.frame(before);
            self.say(if self.trim { content.trim() } else { content }, &mut n_pictures, &mut out);
            out.frame(after);
        };
        let mut after_system = false;
        let mut users = 0;
        if messages.first().is_none_or(|m| m.role != Role::System) && !self.default_system.is_empty() {
            turn(self.system, self.default_system);
            after_system = true;
        }
        for message in messages {
            match message.role {
                Role::System if message.content.is_empty() => {}
                Role::System => {
                    turn(self.system, &message.content);
                    after_system = true;
                    continue;
                }
                Role::User => {
                    let before = match (self.user_after_system, self.user_next) {
                        (Some(before), _) if after_system => before,
                        (_, Some(before)) if users > 0 => before,
                        _ => self.user.0,
                    };
                    turn((before, self.user.1), &self.question(&message.content));
                    users += 1;
                }
                Role::Assistant => turn(self.assistant, &message.content),
            }
            after_system = false;
        }
        if add_generation_prompt {
            out.frame(self.generate);
        }
        out
    }

    /// What comes before an answer.
    pub fn assistant_start(&self) -> &'static str {
        self.assistant.0
    }

    /// What a message says, with the tags of pictures; `n_pictures` came before it.
    fn say(&self, content: &str, n_pictures: &mut usize, out: &mut Parts) {
        if !matches!(self.image, Image::Img | Image::Numbered) {
            return out.said(content);
        }
        let mut rest = content;
        while let Some((before, after)) = rest.split_once(IMAGE_MARKER) {
            *n_pictures += 1;
            out.said(before);
            rest = after;
            if self.image == Image::Numbered {
                out.said(&format!("Picture {n_pictures}: "));
            }
            out.frame("<img>");
            out.frame(IMAGE_MARKER);
            out.frame("</img>");
            if self.image == Image::Numbered {
                out.said("\n");
                rest = after.strip_prefix('\n').unwrap_or(after);
            }
        }
        out.said(rest);
    }

    /// The message with the pictures in front of it written as the model expects.
    fn question<'m>(&self, content: &'m str) -> Cow<'m, str> {
        if self.image == Image::Tagged && content.contains(IMAGE_MARKER) {
            let tagged = format!("<Img>{IMAGE_MARKER}</Img>");
            let (mut out, mut rest) = (String::new(), content);
            while let Some(after) = rest.strip_prefix(IMAGE_MARKER) {
                out.extend([&tagged, " "]);
                rest = after.trim_start_matches(['\n', ' ']);
            }
            return Cow::Owned(out + &rest.replace(IMAGE_MARKER, &tagged));
        }
        if !matches!(self.image, Image::Line | Image::Wrapped) || !content.starts_with(IMAGE_MARKER) {
            return Cow::Borrowed(content);
        }
        let mut out = String::new();
        let mut rest = content;
        while let Some(after) = rest.strip_prefix(IMAGE_MARKER) {
            match self.image {
                Image::Wrapped => out.extend(["<im_start>", IMAGE_MARKER, "<im_end>"]),
                _ => out.push_str(IMAGE_MARKER),
            }
            out.push('\n');
            rest = after.strip_prefix('\n').unwrap_or(after);
        }
        out.push_str(rest);
        Cow::Owned(out)
    }
}
