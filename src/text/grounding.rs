//! Places in a picture that a model points at, in a stream of text: the tags are taken out, what they say becomes a
//! [`Place`], and the words stay. Knows no picture: coordinates are fractions of what the model saw.
//!
//! | dialect | words | place | scale |
//! |---|---|---|---|
//! | Qwen-VL | `<ref>a cat</ref>` | `<box>(x1,y1),(x2,y2)</box>`, `<quad>(x,y),(x,y),(x,y),(x,y)</quad>` | 0 to 1000 |
//! | MiniGPT-v2 | `<p>a cat</p>` | `{<x1><y1><x2><y2>}`, several with `<delim>` or nothing between | 0 to 100 |
//!
//! Places right behind the words, with only blanks and commas between, are theirs. Whatever is not whole and in this form
//! is text like any other and comes out as it went in.

use std::str::FromStr;

/// The way in which a model writes places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Qwen-VL (arXiv 2308.12966); the tags are control tokens.
    Qwen,
    /// MiniGPT-v2 (arXiv 2310.09478); the tags are ordinary text.
    MiniGptV2,
}

impl Dialect {
    /// Every dialect with the name that flags take.
    pub const NAMES: [(&str, Dialect); 2] = [("qwen", Dialect::Qwen), ("minigpt_v2", Dialect::MiniGptV2)];

    /// The dialect of models that use the chat template called `name`.
    pub fn of_template(name: &str) -> Option<Dialect> {
        let name = name.to_lowercase().replace('-', "_");
        Dialect::NAMES.into_iter().find_map(|(prefix, dialect)| name.starts_with(prefix).then_some(dialect))
    }

    /// The dialect whose tags occur in `text`.
    pub fn of_text(text: &str) -> Option<Dialect> {
        let has = |tags: &[&str]| tags.iter().any(|tag| text.contains(tag));
        match () {
            () if has(&["<box>", "<quad>", "<ref>"]) => Some(Dialect::Qwen),
            () if has(&["{<", "<p>"]) => Some(Dialect::MiniGptV2),
            () => None,
        }
    }

    /// The tags, some of which may be control tokens.
    pub const fn tags(self) -> &'static [&'static str] {
        match self {
            Dialect::Qwen => &["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"],
            Dialect::MiniGptV2 => &["<p>", "</p>", "<delim>"],
        }
    }

    /// What to ask a model for the place of `phrase`, and how its answer has to begin.
    pub fn find(self, phrase: &str) -> (String, String) {
        match self {
            Dialect::Qwen => (format!("Output the bounding box of {phrase}."), format!("<ref>{phrase}</ref><box>")),
            Dialect::MiniGptV2 => (format!("[refer] give me the location of {phrase}"), String::new()),
        }
    }

    /// The tags around words.
    fn phrase_tags(self) -> (&'static str, &'static str) {
        match self {
            Dialect::Qwen => ("<ref>", "</ref>"),
            Dialect::MiniGptV2 => ("<p>", "</p>"),
        }
    }
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(name: &str) -> Result<Dialect, String> {
        let known = || Dialect::NAMES.map(|(name, _)| name).join(", ");
        let dialect = Dialect::NAMES.into_iter().find_map(|(n, dialect)| (n == name).then_some(dialect));
        dialect.ok_or_else(|| format!("{name:?} is none of {}", known()))
    }
}

/// A place that a text points at.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The words that it belongs to; empty if there are none.
    pub label: String,
    /// Two points: the corners of a box, upper left and lower right. Four: a quadrangle. From (0, 0), the upper left corner
    /// of what the model saw, to (1, 1).
    pub points: Vec<[f64; 2]>,
}

/// What comes out of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Span {
    /// Text to show.
    Text(String),
    /// A place, where the text pointed at it.
    Place(Place),
}

/// Splits a text that comes piece by piece into what is to be shown and places. How it is cut does not matter.
#[derive(Clone, Debug)]
pub struct Grounding {
    dialect: Dialect,
    default_label: String,
    /// The words before, as long as only places and blanks have followed.
    label: Option<String>,
    behind_place: bool,
    /// Text that may still become a tag.
    held: String,
}

/// Longest text between tags around words, in bytes.
const MAX_PHRASE: usize = 512;
/// Most digits of a coordinate.
const MAX_DIGITS: usize = 4;

impl Grounding {
    /// A parser at the start of a text.
    pub fn new(dialect: Dialect) -> Grounding {
        Grounding { dialect, default_label: String::new(), label: None, behind_place: false, held: String::new() }
    }

    /// The same parser, which calls places without words `label`.
    pub fn with_default_label(mut self, label: &str) -> Grounding {
        self.default_label = label.to_owned();
        self
    }

    /// Takes the next piece of text; returns what is certain.
    pub fn push(&mut self, text: &str) -> Vec<Span> {
        self.held.push_str(text);
        self.advance(false)
    }

    /// What is left when the text ends.
    pub fn finish(&mut self) -> Vec<Span> {
        self.advance(true)
    }

    fn advance(&mut self, at_end: bool) -> Vec<Span> {
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_str();
        let mut spans = Vec::new();
        while !rest.is_empty() {
            let plain = rest.find([' ', '<', '{']).unwrap_or(rest.len());
            self.text(&rest[..plain], &mut spans);
            rest = &rest[plain..];
            let tag = rest.trim_start_matches(' ');
            let blanks = &rest[..rest.len() - tag.len()];
            let parsed = match tag.chars().next() {
                None if blanks.is_empty() => break,
                None => Parsed::Open,
                Some('<' | '{') => self.parse(tag),
                Some(_) => Parsed::Text,
            };
            match parsed {
                Parsed::Open if !at_end => {
                    self.held = rest.to_owned();
                    break;
                }
                Parsed::Open | Parsed::Text => {
                    // Blanks go first: the character behind them decides alone.
                    let n = if blanks.is_empty() { 1 } else { blanks.len() };
                    self.text(&rest[..n], &mut spans);
                    rest = &rest[n..];
                }
                Parsed::Tag(n, tag_is) => {
                    if let Tag::Phrase(phrase) = tag_is {
                        self.text(blanks, &mut spans);
                        self.text(phrase, &mut spans);
                        self.label = Some(phrase.trim().to_owned()).filter(|label| !label.is_empty());
                    } else {
                        // Blanks in front of a place are part of it: words on both sides keep one between them.
                        if let Tag::Place(points) = tag_is {
                            let label = self.label.as_ref().unwrap_or(&self.default_label).clone();
                            spans.push(Span::Place(Place { label, points }));
                        }
                        self.behind_place = true;
                    }
                    rest = &tag[n..];
                }
            }
        }
        spans
    }

    /// Shows `text`.
    fn text(&mut self, text: &str, spans: &mut Vec<Span>) {
        if text.is_empty() {
            return;
        }
        self.behind_place = false;
        if text.contains(|c: char| !c.is_whitespace() && !matches!(c, ',' | ';' | '，' | '、')) {
            self.label = None;
        }
        match spans.last_mut() {
            Some(Span::Text(last)) => last.push_str(text),
            _ => spans.push(Span::Text(text.to_owned())),
        }
    }

    /// The tag that `text` begins with.
    fn parse<'t>(&self, text: &'t str) -> Parsed<'t> {
        let mut open = false;
        let (from, to) = self.dialect.phrase_tags();
        let mut forms: Vec<Form<'t, '_>> = vec![Box::new(|scanner| phrase(scanner, from, to, self.dialect))];
        match self.dialect {
            Dialect::Qwen => {
                forms.push(Box::new(|scanner| points(scanner, "box", 2)));
                forms.push(Box::new(|scanner| points(scanner, "quad", 4)));
            }
            Dialect::MiniGptV2 => {
                forms.push(Box::new(corners));
                if self.behind_place {
                    forms.push(Box::new(|scanner| scanner.literal("<delim>").map(|()| Tag::Delimiter)));
                }
            }
        }
        for form in forms {
            let mut scanner = Scanner { rest: text };
            match form(&mut scanner) {
                Ok(tag) => return Parsed::Tag(text.len() - scanner.rest.len(), tag),
                Err(Stop::Open) => open = true,
                Err(Stop::Other) => {}
            }
        }
        if open { Parsed::Open } else { Parsed::Text }
    }
}

type Form<'t, 'f> = Box<dyn Fn(&mut Scanner<'t>) -> Result<Tag<'t>, Stop> + 'f>;

enum Tag<'t> {
    Phrase(&'t str),
    Place(Vec<[f64; 2]>),
    Delimiter,
}

enum Parsed<'t> {
    /// A tag, and how many bytes it takes.
    Tag(usize, Tag<'t>),
    /// What comes next decides.
    Open,
    /// No tag, whatever comes next.
    Text,
}

/// Why a form does not match.
enum Stop {
    /// The text ends too early.
    Open,
    /// It is something else.
    Other,
}

struct Scanner<'t> {
    rest: &'t str,
}

impl<'t> Scanner<'t> {
    fn literal(&mut self, literal: &str) -> Result<(), Stop> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => self.rest = rest,
            None if literal.starts_with(self.rest) => return Err(Stop::Open),
            None => return Err(Stop::Other),
        }
        Ok(())
    }

    /// As [`Scanner::literal`], after blanks.
    fn spaced(&mut self, literal: &str) -> Result<(), Stop> {
        self.rest = self.rest.trim_start_matches(' ');
        self.literal(literal)
    }

    /// A whole number up to `scale`, after blanks, as a fraction of `scale`.
    fn coordinate(&mut self, scale: u32) -> Result<f64, Stop> {
        self.rest = self.rest.trim_start_matches(' ');
        let n = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        if n > MAX_DIGITS {
            return Err(Stop::Other);
        }
        if n == self.rest.len() {
            return Err(Stop::Open);
        }
        let number: u32 = self.rest[..n].parse().map_err(|_| Stop::Other)?;
        if number > scale {
            return Err(Stop::Other);
        }
        self.rest = &self.rest[n..];
        Ok(f64::from(number) / f64::from(scale))
    }
}

/// Words between two tags: one line without tags of the dialect.
fn phrase<'t>(scanner: &mut Scanner<'t>, from: &str, to: &str, dialect: Dialect) -> Result<Tag<'t>, Stop> {
    scanner.literal(from)?;
    let text = scanner.rest;
    let mut at = 0;
    loop {
        at += text[at..].find(['<', '\n']).unwrap_or(text.len() - at);
        if at > MAX_PHRASE || text[at..].starts_with('\n') {
            return Err(Stop::Other);
        }
        if at == text.len() {
            return Err(Stop::Open);
        }
        scanner.rest = &text[at..];
        match scanner.literal(to) {
            Ok(()) => return Ok(Tag::Phrase(&text[..at])),
            Err(Stop::Open) => return Err(Stop::Open),
            Err(Stop::Other) => {}
        }
        // Words hold no other tag.
        for tag in dialect.tags() {
            match scanner.literal(tag) {
                Ok(()) => return Err(Stop::Other),
                Err(Stop::Open) => return Err(Stop::Open),
                Err(Stop::Other) => {}
            }
        }
        at += 1;
    }
}

/// Qwen-VL's points between tags called `name`.
fn points<'t>(scanner: &mut Scanner<'t>, name: &str, n: usize) -> Result<Tag<'t>, Stop> {
    scanner.literal(&format!("<{name}>"))?;
    let mut points = Vec::with_capacity(n);
    for i in 0..n {
        if i > 0 {
            scanner.spaced(",")?;
        }
        scanner.spaced("(")?;
        let x = scanner.coordinate(1000)?;
        scanner.spaced(",")?;
        let y = scanner.coordinate(1000)?;
        scanner.spaced(")")?;
        points.push([x, y]);
    }
    scanner.spaced(&format!("</{name}>"))?;
    Ok(Tag::Place(if n == 2 { upright(&points) } else { points }))
}

/// MiniGPT-v2's box.
fn corners<'t>(scanner: &mut Scanner<'t>) -> Result<Tag<'t>, Stop> {
    scanner.literal("{")?;
    let mut numbers = [0.0; 4];
    for number in &mut numbers {
        scanner.spaced("<")?;
        *number = scanner.coordinate(100)?;
        scanner.spaced(">")?;
    }
    scanner.spaced("}")?;
    Ok(Tag::Place(upright(&[[numbers[0], numbers[1]], [numbers[2], numbers[3]]])))
}

/// Upper left and lower right of the box that two opposite corners span.
fn upright(corners: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let [a, b] = [corners[0], corners[1]];
    vec![[a[0].min(b[0]), a[1].min(b[1])], [a[0].max(b[0]), a[1].max(b[1])]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{StreamDecoder, Tokenizer};
    use proptest::prelude::*;

    /// The text that is shown, and the places with their labels.
    fn read<'p>(dialect: Dialect, pieces: impl IntoIterator<Item = &'p str>) -> (String, Vec<Place>) {
        let mut grounding = Grounding::new(dialect);
        let mut spans: Vec<Span> = pieces.into_iter().flat_map(|piece| grounding.push(piece)).collect();
        spans.extend(grounding.finish());
        let (mut text, mut places) = (String::new(), Vec::new());
        for span in spans {
            match span {
                Span::Text(more) => text += &more,
                Span::Place(place) => places.push(place),
            }
        }
        (text, places)
    }

    fn place(label: &str, points: &[[f64; 2]]) -> Place {
        Place { label: label.into(), points: points.to_vec() }
    }

    #[test]
    fn boxes_of_qwen() {
        let (text, places) = read(
            Dialect::Qwen,
            [
                "The <ref> red car</ref><box>(100,200),(300,400)</box><box>(500,0),(1000,999)</box> and <box>(9,8),(7,6)</box>.",
            ],
        );
        assert_eq!(text, "The  red car and.");
        let expected = [
            place("red car", &[[0.1, 0.2], [0.3, 0.4]]),
            place("red car", &[[0.5, 0.0], [1.0, 0.999]]),
            place("", &[[0.007, 0.006], [0.009, 0.008]]),
        ];
        assert_eq!(places, expected);
        let (text, places) = read(Dialect::Qwen, ["<ref>招牌</ref><quad>(1,2),(3,4),(5,6),(7,8)</quad>"]);
        assert_eq!(text, "招牌");
        assert_eq!(places, [place("招牌", &[[0.001, 0.002], [0.003, 0.004], [0.005, 0.006], [0.007, 0.008]])]);
    }

    #[test]
    fn boxes_of_minigpt() {
        let (text, places) = read(
            Dialect::MiniGptV2,
            [
                "<p>two dogs</p> {<0><10><50><100>}<delim>{<50><10><99><98>} on <p>grass</p> {<0>< 80 ><100><100>}, green",
            ],
        );
        assert_eq!(text, "two dogs on grass, green");
        let expected = [
            place("two dogs", &[[0.0, 0.1], [0.5, 1.0]]),
            place("two dogs", &[[0.5, 0.1], [0.99, 0.98]]),
            place("grass", &[[0.0, 0.8], [1.0, 1.0]]),
        ];
        assert_eq!(places, expected);
        let mut grounding = Grounding::new(Dialect::MiniGptV2).with_default_label("a hat");
        assert_eq!(grounding.push(" {<1><2><3><4>}"), [Span::Place(place("a hat", &[[0.01, 0.02], [0.03, 0.04]]))]);
    }

    #[test]
    fn what_is_not_whole_is_text() {
        for text in [
            "<ref>cat",
            "<ref>cat</re",
            "</ref> </box>",
            "<box>(1,2),(3,4)",
            "<box>(1,2),(3,1001)</box>",
            "<box>(1,2)</box>",
            "<box>(1,2),(3,4),(5,6)</box>",
            "<box>(1,2),(00003,4)</box>",
            "<box>(-1,2),(3,4)</box>",
            "<quad>(1,2),(3,4)</quad>",
            "<box><box>(1,",
            "a < b, {x}  <i>",
            "<ref>a\nb</ref>",
            "{<1><2><3><4>}",
            "<p>cat</p>",
        ] {
            assert_eq!(read(Dialect::Qwen, [text]), (text.to_owned(), Vec::new()));
        }
        for text in ["{<1><2><3>}", "{<1><2><3><101>}", "{<1><2><3><4>", "<delim>", "<p>a<p>", "{<1><2><3><-4>}"] {
            assert_eq!(read(Dialect::MiniGptV2, [text]), (text.to_owned(), Vec::new()));
        }
        let long = format!("<ref>{}</ref>", "x".repeat(MAX_PHRASE + 1));
        assert_eq!(read(Dialect::Qwen, [long.as_str()]), (long.clone(), Vec::new()));
    }

    #[test]
    fn a_broken_tag_does_not_hide_the_next() {
        let (text, places) = read(Dialect::Qwen, ["<ref>a <ref>cat</ref><box>(1,<box>(0,0),(10,10)</box>"]);
        assert_eq!(text, "<ref>a cat<box>(1,");
        assert_eq!(places, [place("", &[[0.0, 0.0], [0.01, 0.01]])]);
    }

    #[test]
    fn words_come_as_soon_as_they_are_certain() {
        let mut grounding = Grounding::new(Dialect::Qwen);
        assert_eq!(grounding.push("Look: "), [Span::Text("Look:".into())]);
        assert_eq!(grounding.push("<ref>a"), []);
        assert_eq!(grounding.push(" cat</ref>"), [Span::Text(" a cat".into())]);
        assert_eq!(grounding.push("<box>(1,2),(3,4)</box"), []);
        assert_eq!(grounding.push(">"), [Span::Place(place("a cat", &[[0.001, 0.002], [0.003, 0.004]]))]);
    }

    #[test]
    fn tags_that_are_control_tokens_arrive() {
        let tags = Dialect::Qwen.tags();
        let tokenizer = Tokenizer::bytes(&[tags, &["<|im_end|>"]].concat());
        let text = "a <ref>cat</ref><box>(1,2),(3,4)</box><|im_end|>!";
        let tokens = tokenizer.encode(text, false, true);
        let shown = tags.iter().filter_map(|tag| tokenizer.token_id(tag)).collect::<Vec<_>>();
        assert_eq!(shown.len(), 6);
        let decoded = |mut decoder: StreamDecoder<'_>| tokens.iter().map(|t| decoder.push(*t)).collect::<Vec<_>>();
        let hidden = decoded(StreamDecoder::new(&tokenizer));
        assert_eq!(hidden.concat(), "a cat(1,2),(3,4)!");
        let pieces = decoded(StreamDecoder::new(&tokenizer).with_shown(shown));
        let (text, places) = read(Dialect::Qwen, pieces.iter().map(String::as_str));
        assert_eq!(text, "a cat!");
        assert_eq!(places, [place("cat", &[[0.001, 0.002], [0.003, 0.004]])]);
    }

    #[test]
    fn dialects_have_names() {
        for (name, dialect) in Dialect::NAMES {
            assert_eq!(name.parse(), Ok(dialect));
            assert_eq!(Dialect::of_template(name), Some(dialect));
        }
        assert_eq!(Dialect::of_template("qwen_vl"), Some(Dialect::Qwen));
        assert_eq!(Dialect::of_template("vicuna_v1"), None);
        assert_eq!(Dialect::of_text("a {<1><2>"), Some(Dialect::MiniGptV2));
        assert_eq!(Dialect::of_text("a <box>"), Some(Dialect::Qwen));
        assert_eq!(Dialect::of_text("plain"), None);
        assert!("owl".parse::<Dialect>().unwrap_err().contains("minigpt_v2"));
    }

    /// Parts of tags, whole ones, and what lies between, so that many come out right and many do not.
    const PARTS: &str = "<ref>|</ref>|<box>|</box>|<quad>|</quad>|<box>\\(1,20\\),\\(300,1000\\)</box>|<ref>a é</ref>|<p>|</p>|\
                         <p>b</p>|<delim>|\\{<1><20><30><100>\\}|[<>(){},/a é1\n]{1,3}|1001|\\(1,2\\)";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn pieces_do_not_matter(parts in prop::collection::vec(PARTS, 0..12), cuts in prop::collection::vec(0usize..200, 0..20)) {
            let whole = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).filter(|cut| whole.is_char_boundary(*cut)).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            for (_, dialect) in Dialect::NAMES {
                let expected = read(dialect, [whole.as_str()]);
                prop_assert_eq!(&read(dialect, cuts.windows(2).map(|cut| &whole[cut[0]..cut[1]])), &expected);
                prop_assert_eq!(&read(dialect, whole.split_inclusive(|_: char| true)), &expected);
            }
        }

        #[test]
        fn text_without_tags_stays(text in "[a-z (){},.é\\n]{0,40}") {
            for (_, dialect) in Dialect::NAMES {
                prop_assert_eq!(read(dialect, [text.as_str()]), (text.clone(), Vec::new()));
            }
        }

        #[test]
        fn boxes_come_back(x in prop::array::uniform4(0u32..=1000), words in "[a-z]{1,8}") {
            let text = format!("<ref>{words}</ref><box>({},{}),({},{})</box>", x[0], x[1], x[2], x[3]);
            let (shown, places) = read(Dialect::Qwen, [text.as_str()]);
            let f = |v: u32| f64::from(v) / 1000.0;
            let corners = [[f(x[0].min(x[2])), f(x[1].min(x[3]))], [f(x[0].max(x[2])), f(x[1].max(x[3]))]];
            prop_assert_eq!(places, [place(&words, &corners)]);
            prop_assert_eq!(shown, words);
        }
    }
}
