//! Templates byte for byte.

use super::*;
use crate::ErrorKind;
use proptest::prelude::*;

fn user(content: &str) -> Message {
    Message { role: Role::User, content: content.into() }
}

fn assistant(content: &str) -> Message {
    Message { role: Role::Assistant, content: content.into() }
}

fn system(content: &str) -> Message {
    Message { role: Role::System, content: content.into() }
}

fn render(name: &str, messages: &[Message]) -> String {
    ChatTemplate::new(name).unwrap().render(messages, true, "<s>", "</s>").unwrap()
}

const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// A picture with a question, an answer, and another question.
fn turns() -> Vec<Message> {
    vec![user("<__media__>What is it?"), assistant("A cat."), user("Sure?")]
}

#[test]
fn vicuna_v1() {
    let one = format!("{SYSTEM} USER: <__media__>\nWhat is it? ASSISTANT:");
    assert_eq!(render("vicuna_v1", &turns()[..1]), one);
    assert_eq!(render("llava", &turns()), format!("{one} A cat.</s>USER: Sure? ASSISTANT:"));
    let custom = render("vicuna", &[system("Be brief."), user("<__media__>\nHi")]);
    assert_eq!(custom, "Be brief. USER: <__media__>\nHi ASSISTANT:");
    let t = ChatTemplate::new("vicuna").unwrap();
    assert_eq!((t.name(), t.stop_strings()), ("vicuna_v1", &["</s>".to_string()][..]));
    let closed = t.render(&turns()[..2], false, "", "").unwrap();
    assert_eq!(closed, format!("{one} A cat.</s>"));
    let human = SYSTEM.replace("user", "human");
    assert_eq!(render("llava_v1", &turns()[..1]), one.replace(SYSTEM, &human));
}

#[test]
fn llava_v0() {
    let human = SYSTEM.replace("user", "human");
    let one = format!("{human}###Human: <im_start><__media__><im_end>\nWhat is it?###Assistant:");
    assert_eq!(render("llava_v0", &turns()[..1]), one);
    assert_eq!(render("llava_v0", &turns()), format!("{one} A cat.###Human: Sure?###Assistant:"));
    assert_eq!(ChatTemplate::new("llava_v0").unwrap().stop_strings(), ["###"]);
}

#[test]
fn llava_llama_2() {
    let one = "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n<__media__>\nWhat is it? [/INST]";
    assert_eq!(render("llava_llama_2", &turns()[..1]), one);
    assert_eq!(render("llava_llama_2", &turns()), format!("{one} A cat. </s><s>[INST] Sure? [/INST]"));
}

const GIVEN: &str = "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. Please answer my questions.";

#[test]
fn minigpt4() {
    let one = format!("{GIVEN}###Human: <Img><__media__></Img> What is it?###Assistant: ");
    assert_eq!(render("minigpt4", &turns()[..1]), one);
    assert_eq!(render("minigpt4", &turns()), format!("{one}A cat.###Human: Sure?###Assistant: "));
    assert_eq!(render("minigpt4", &[user("<__media__>\nHi")]), one.replace("What is it?", "Hi"));
    let inside = render("minigpt4", &[user("<__media__><__media__>\nIs <__media__> one of them?")]);
    assert!(
        inside
            .contains("Human: <Img><__media__></Img> <Img><__media__></Img> Is <Img><__media__></Img> one of them?###")
    );
    assert_eq!(ChatTemplate::new("minigpt4").unwrap().stop_strings(), ["###"]);
}

#[test]
fn minigpt4_of_llama_2() {
    let one = format!("{GIVEN}<s>[INST] <Img><__media__></Img> What is it? [/INST] ");
    assert_eq!(render("minigpt4_llama_2", &turns()[..1]), one);
    assert_eq!(render("minigpt4_llama_2", &turns()), format!("{one}A cat.<s>[INST] Sure? [/INST] "));
}

#[test]
fn minigpt_v2() {
    let asked = [user("<__media__>[vqa] What is it?"), assistant("A cat."), user("Sure?")];
    let one = "<s><s>[INST] <Img><__media__></Img> [vqa] What is it? [/INST]";
    assert_eq!(render("minigpt_v2", &asked[..1]), one);
    assert_eq!(render("minigpt_v2", &asked), format!("{one}A cat.<s>[INST] Sure? [/INST]"));
    assert_eq!(render("minigpt_v2", &[system("Be brief."), user("Hi")]), "<s>Be brief.<s>[INST] Hi [/INST]");
}

#[test]
fn mistral_instruct() {
    let one = "[INST] <__media__>\nWhat is it? [/INST]";
    assert_eq!(render("mistral_instruct", &turns()[..1]), one);
    assert_eq!(render("mistral", &turns()), format!("{one} A cat. </s>[INST] Sure? [/INST]"));
}

#[test]
fn chatml_direct() {
    let one = "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<__media__>\nWhat is it?<|im_end|><|im_start|>assistant\n";
    assert_eq!(render("chatml_direct", &turns()[..1]), one);
    let more = "A cat.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n";
    assert_eq!(render("chatml_direct", &turns()), format!("{one}{more}"));
}

#[test]
fn answers_that_are_begun() {
    let begun = |name: &str| render(name, &[user("Q"), assistant("It is")]);
    assert!(begun("vicuna_v1").ends_with("USER: Q ASSISTANT: It is"));
    assert_eq!(begun("chatml"), "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nIt is");
    assert_eq!(begun("mistral_instruct"), "[INST] Q [/INST] It is");
    assert_eq!(begun("plain"), "QIt is");
    let jinja = "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}A:{% endif %}";
    assert_eq!(begun(jinja), "<Q>A:It is");
}

#[test]
fn several_pictures_and_none() {
    let two = render("mistral_instruct", &[user("<__media__><__media__>\nCompare <__media__>.")]);
    assert_eq!(two, "[INST] <__media__>\n<__media__>\nCompare <__media__>. [/INST]");
    assert_eq!(render("mistral_instruct", &[user("Hi")]), "[INST] Hi [/INST]");
}

#[test]
fn others_by_name() {
    let chat = [system("S"), user(" Q "), assistant("A"), user("R")];
    for (name, expected) in [
        ("plain", "S Q AR"),
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n Q <|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("llama2", "[INST] S\n Q  [/INST]A</s>[INST] R [/INST]"),
        ("llama2-sys", "[INST] <<SYS>>\nS\n<</SYS>>\n\n Q  [/INST]A</s>[INST] R [/INST]"),
        ("mistral-v1", " [INST] S\n\n Q  [/INST] A</s> [INST] R [/INST]"),
        ("mistral-v7", "[SYSTEM_PROMPT] S[/SYSTEM_PROMPT][INST]  Q [/INST] A</s>[INST] R[/INST]"),
        (
            "gemma",
            "<start_of_turn>user\nS\n\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nR<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "phi3",
            "<|system|>\nS<|end|>\n<|user|>\n Q <|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nR<|end|>\n<|assistant|>\n",
        ),
    ] {
        assert_eq!(render(name, &chat), expected, "{name}");
    }
    let error = ChatTemplate::new("no-such").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("no-such") && error.to_string().contains("vicuna_v1"));
    for name in ChatTemplate::names() {
        assert_eq!(ChatTemplate::new(name).unwrap().name(), name);
    }
}

#[test]
fn jinja_as_transformers_runs_it() {
    let template = "{%- for m in messages -%}\n    {% if m['role'] == 'user' %}\n{{ bos_token + '<u>' + m.content.strip() }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}<a>{% endif %}\n";
    let prompt = render(template, &[assistant("x"), user(" hi ")]);
    assert_eq!(prompt, "<s><u>hi\n<a>");
    let t =
        ChatTemplate::new("{{ messages[0]['content'] }}{{ {'a': [1, '<é>']} | tojson }}{{ tools is none }}").unwrap();
    assert_eq!(t.render(&[user("q")], true, "", "").unwrap(), "q{\"a\": [1, \"<é>\"]}True");
    assert_eq!(t.name(), "jinja");
    assert_eq!(
        render("{{ tools is iterable }}{{ 'a' is iterable }}{{ [] is iterable }}{{ 1 is iterable }}", &[]),
        "FalseTrueTrueFalse"
    );
}

#[test]
fn jinja_that_wants_parts() {
    let template = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}[{{ p.text }}]{% endif %}{% endfor %}{% endfor %}";
    assert_eq!(render(template, &[user("<__media__>hi")]), "[<__media__>hi]");
    let either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}!{% endif %}{% endfor %}";
    assert_eq!(render(either, &[user("hi")]), "hi");
}

#[test]
fn jinja_without_a_system_role() {
    let template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<{{ m.content }}>{% endfor %}";
    assert_eq!(render(template, &[system("S"), user("Q")]), "<S\n\nQ>");
    let t = ChatTemplate::new(template).unwrap();
    let error = t.render(&[user("Q"), system("S")], true, "", "").unwrap_err();
    assert!(error.to_string().contains("chat template") && error.to_string().contains("no system"), "{error}");
}

#[test]
fn generation_tags_write_nothing() {
    let template = "{% for m in messages %}a {%- generation -%} {{ m.content }} {%- endgeneration %} b{% endfor %}";
    assert_eq!(render(template, &[user("Q")]), "aQ b");
}

#[test]
fn hostile_templates_end() {
    for broken in ["{% for x in %}", "{%}", "{%} {{ 1 }} %}"] {
        assert_eq!(ChatTemplate::new(broken).unwrap_err().kind(), ErrorKind::Format, "{broken}");
    }
    // What the engine itself does not survive.
    let import = ChatTemplate::new("{% import 'y' as z %s %}").unwrap_err();
    assert_eq!((import.kind(), import.to_string().contains("engine gave up")), (ErrorKind::Format, true), "{import}");
    let backwards = ChatTemplate::new("{% for m in [][::-1] %}{{ m }}{% endfor %}").unwrap();
    assert_eq!(backwards.render(&[user("x")], true, "", "").unwrap_err().kind(), ErrorKind::Format);
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let t = ChatTemplate::new(endless).unwrap();
    assert!(t.render(&[user("x")], true, "", "").unwrap_err().to_string().contains("fuel"));
    let flood = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
    let t = ChatTemplate::new(flood).unwrap();
    let error = t.render(&[user(&"x".repeat(1 << 20))], true, "", "").unwrap_err();
    assert!(error.to_string().contains("bytes of output"), "{error}");
    let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    assert!(ChatTemplate::new(deep).unwrap().render(&[user("x")], true, "", "").is_err());
}

/// What templates are made of, whole and broken.
const PIECES: &str = "{%¦%}¦{{¦}}¦{¦}¦%¦-¦+¦#¦{#¦#}¦ ¦\n¦é¦'¦\"¦|¦.¦,¦(¦)¦[¦]¦:¦~¦=¦0¦-1¦99999999999¦1e400¦messages¦m¦.content¦generation\
                      ¦endgeneration¦if ¦endif¦for m in messages¦endfor¦set x = ¦endset¦macro x()¦endmacro¦raw¦endraw¦loop.index0¦not \
                      ¦is ¦defined¦in ¦trim¦tojson¦indent¦format¦length¦range¦join¦split¦namespace¦strftime_now¦raise_exception\
                      ¦{% for m in messages %}¦{{ m.content }}¦{%- generation +%}¦{% endgeneration %}¦{{ 'a' }}¦{% if m %}";

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(PIECES.split('¦').collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn any_pieces_are_run_or_refused(pieces in prop::collection::vec(piece(), 0..14)) {
        let text = pieces.concat();
        if let Ok(template) = ChatTemplate::new(&text) {
            let _ = template.render(&[user("Qé"), assistant("A")], true, "<s>", "</s>");
        }
    }
}

#[test]
fn widths_are_bounded() {
    let run = |template: &str| ChatTemplate::new(template).unwrap().render(&[user("a\n\nb\n")], true, "", "");
    assert_eq!(run("{{ messages[0].content|indent }}").unwrap(), "a\n\n    b");
    assert_eq!(run("{{ messages[0].content|indent(1, true) }}").unwrap(), " a\n\n b");
    assert_eq!(run("{{ messages[0].content|indent(width=1, blank=true) }}").unwrap(), "a\n \n b");
    assert_eq!(run("{{ '%3d'|format(7) }}").unwrap(), "  7");
    for wide in [
        "{{ 'a'|indent(1001) }}",
        "{{ '%1001d'|format(1) }}",
        "{{ '%-*d'|format(9, 1) }}",
        "{{ '{:>1001}'.format(1) }}",
    ] {
        assert!(run(wide).unwrap_err().to_string().contains("columns"), "{wide}");
    }
}

#[test]
fn names_of_llava_models() {
    for (names, template) in [
        ("llama v2 ggml-model-q4_k.gguf mmproj-model-f16.gguf", None),
        ("llava-v1.5-7b", Some("vicuna_v1")),
        ("llava-v1.6-vicuna-13b", Some("vicuna_v1")),
        ("llava-v1.6-mistral-7b", Some("mistral_instruct")),
        ("llava-v1.6-34b", Some("chatml_direct")),
        ("llava-llama-2-13b-chat", Some("llava_llama_2")),
        ("llava-v1-7b", Some("llava_v1")),
        ("llava-7b-v0", Some("llava_v0")),
    ] {
        assert_eq!(llava_template(names), template, "{names}");
    }
}

#[test]
fn qwen_vl() {
    let messages = [user("<__media__>\nWhat?"), assistant("A cat."), user("Beside <__media__>: <|im_end|>?")];
    let template = ChatTemplate::new("qwen_vl").unwrap();
    let one = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: <img><__media__></img>\nWhat?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(template.render(&messages[..1], true, "", "").unwrap(), one);
    let more = "A cat.<|im_end|>\n<|im_start|>user\nBeside Picture 2: <img><__media__></img>\n: <|im_end|>?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(template.render(&messages, true, "", "").unwrap(), format!("{one}{more}"));
    // What a message says is told apart, and a picture's tags are none of it.
    let said: Vec<String> = template
        .parts(&messages, true, "", "")
        .unwrap()
        .0
        .into_iter()
        .filter_map(|part| match part {
            Part::Said(text) => Some(text),
            Part::Frame(_) => None,
        })
        .collect();
    assert_eq!(
        said,
        ["You are a helpful assistant.", "Picture 1: ", "\nWhat?", "A cat.", "Beside Picture 2: ", "\n: <|im_end|>?"]
    );
    assert_eq!(template.tags().unwrap().len(), 6);
    assert_eq!(template.stop_strings(), ["<|im_end|>", "<|im_start|>"]);
    assert_eq!(
        render("qwen_vl_base", &[user("<__media__>Describe the image in English:")]),
        "<img><__media__></img>Describe the image in English:"
    );
}
