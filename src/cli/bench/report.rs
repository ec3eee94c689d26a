//! What `mmq bench` prints: a row for each test, as a table or for programs, in llama-bench's words.

use super::super::printed;
use crate::Result;
use crate::pipelines::{Engine, KvType};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What results are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A Markdown table
    Md,
    /// A line of values for each test, under one of names
    Csv,
    /// One array of objects
    Json,
    /// An object on a line for each test
    Jsonl,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Test {
    /// A prompt, or tokens written one by one, or both, behind `n_depth` tokens.
    Text { n_prompt: usize, n_gen: usize, n_depth: usize },
    /// A picture's pixels to image tokens.
    Encode,
    /// A picture's file and a question to the first token.
    FirstToken,
}

impl Test {
    /// Its name in a table: `pp512 @ d1024`.
    pub fn name(self) -> String {
        let Test::Text { n_prompt, n_gen, n_depth } = self else {
            return if self == Test::Encode { "enc" } else { "ttft" }.to_owned();
        };
        let name = match (n_prompt, n_gen) {
            (n, 0) => format!("pp{n}"),
            (0, n) => format!("tg{n}"),
            (n, m) => format!("pp{n}+tg{m}"),
        };
        if n_depth > 0 { format!("{name} @ d{n_depth}") } else { name }
    }
}

/// How a session is set up.
#[derive(Clone, Debug)]
pub struct Setting {
    pub n_batch: usize,
    pub n_ubatch: usize,
    pub type_k: KvType,
    pub type_v: KvType,
}

/// What came of a test.
#[derive(Debug)]
pub struct Measured {
    /// How long each repetition took.
    pub times: Vec<Duration>,
    /// Tokens that went through the model in each, image tokens included.
    pub n_tokens: usize,
    /// Image tokens among them.
    pub n_image: usize,
}

/// Mean, deviation of a sample and median.
struct Summary {
    mean: f64,
    deviation: f64,
    median: f64,
}

impl Summary {
    fn of(samples: &[f64]) -> Summary {
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n.max(1.0);
        let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
        let deviation = if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or(0.0);
        let median = (middle(samples.len() / 2) + middle(samples.len().saturating_sub(1) / 2)) / 2.0;
        Summary { mean, deviation, median }
    }
}

/// Writes results to standard output as they come.
pub struct Printer {
    format: Format,
    varied: Vec<&'static str>,
    model: Map<String, Value>,
    load: Duration,
    n_rows: usize,
}

impl Printer {
    /// A printer whose tables also show the parameters called `varied`.
    pub fn new(format: Format, varied: Vec<&'static str>) -> Printer {
        Printer { format, varied, model: Map::new(), load: Duration::ZERO, n_rows: 0 }
    }

    /// The tests that follow run on `engine`, which took `load` to load.
    pub fn begin_model(
        &mut self,
        model: Option<&Path>,
        mmproj: Option<&Path>,
        engine: &Engine,
        load: Duration,
    ) -> Result<()> {
        let info = engine.info();
        let file = |path: Option<&Path>| path.map(|path| path.display().to_string());
        let fields = json!({
            "build_commit": env!("CARGO_PKG_VERSION"),
            "build_number": 0,
            "cpu_info": cpu_info(),
            "gpu_info": "",
            "backends": "CPU",
            "level": engine.level(),
            "model_filename": file(model).unwrap_or_else(|| engine.name().to_owned()),
            "mmproj_filename": file(mmproj).unwrap_or_default(),
            "model_type": info.kind,
            "model_size": info.n_bytes,
            "model_n_params": info.n_params,
            "n_threads": engine.n_threads(),
            "load_ns": nanoseconds(load),
        });
        self.model = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        self.load = load;
        match self.format {
            Format::Md => {
                let head = if self.n_rows == 0 { self.head() } else { String::new() };
                let load = format!("{:.2} ms", milliseconds(load));
                let row = self.table_row(None, "load", &load, "");
                self.write(&(head + &row))
            }
            Format::Json if self.n_rows == 0 => self.write("["),
            _ => Ok(()),
        }
    }

    /// A test's result; `peak_rss` in bytes, if it is known.
    pub fn row(&mut self, setting: &Setting, test: Test, measured: &Measured, peak_rss: Option<u64>) -> Result<()> {
        let (n_prompt, n_gen, n_depth) = match test {
            Test::Text { n_prompt, n_gen, n_depth } => (n_prompt, n_gen, n_depth),
            _ => (0, 0, 0),
        };
        let ns: Vec<f64> = measured.times.iter().map(|time| time.as_secs_f64() * 1e9).collect();
        let per_second: Vec<f64> = ns.iter().map(|ns| measured.n_tokens as f64 * 1e9 / ns.max(1.0)).collect();
        let (time, speed) = (Summary::of(&ns), Summary::of(&per_second));
        let fields = json!({
            "n_batch": setting.n_batch,
            "n_ubatch": setting.n_ubatch,
            "type_k": setting.type_k.name(),
            "type_v": setting.type_v.name(),
            "n_prompt": n_prompt,
            "n_gen": n_gen,
            "n_depth": n_depth,
            "test": test.name(),
            "n_tokens": measured.n_tokens,
            "n_image": measured.n_image,
            "peak_rss": peak_rss,
            "test_time": date(SystemTime::now()),
            "avg_ns": time.mean as u64,
            "stddev_ns": time.deviation as u64,
            "median_ns": time.median as u64,
            "avg_ts": speed.mean,
            "stddev_ts": speed.deviation,
            "median_ts": speed.median,
            "samples_ns": measured.times.iter().map(|time| nanoseconds(*time)).collect::<Vec<_>>(),
            "samples_ts": per_second,
        });
        let mut row = self.model.clone();
        if let Value::Object(fields) = fields {
            row.extend(fields);
        }
        let text = match self.format {
            Format::Md => {
                let (shown, unit, scale) = match test {
                    Test::Text { .. } => (&speed, "", 1.0),
                    _ => (&time, " ms", 1e-6),
                };
                let Summary { mean, deviation, median } = shown;
                let value = format!("{:.2} ± {:.2}{unit}", mean * scale, deviation * scale);
                self.table_row(Some(&row), &test.name(), &value, &format!("{:.2}{unit}", median * scale))
            }
            Format::Csv => {
                row.retain(|key, _| !key.starts_with("samples_"));
                let line = |values: Vec<String>| values.join(",") + "\n";
                let names = line(row.keys().cloned().collect());
                let head = if self.n_rows == 0 { names } else { String::new() };
                head + &line(row.values().map(quoted).collect())
            }
            Format::Json => {
                let object = format!("{:#}", Value::Object(row)).replace('\n', "\n  ");
                format!("{}\n  {object}", if self.n_rows == 0 { "" } else { "," })
            }
            Format::Jsonl => format!("{}\n", Value::Object(row)),
        };
        self.n_rows += 1;
        self.write(&text)
    }

    /// No test of this model follows; `peak_rss` in bytes, if it is known.
    pub fn end_model(&mut self, peak_rss: Option<u64>) -> Result<()> {
        match (self.format, peak_rss) {
            (Format::Md, Some(bytes)) => {
                let value = format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
                let row = self.table_row(None, "rss", &value, "");
                self.write(&row)
            }
            _ => Ok(()),
        }
    }

    /// Ends what has been begun.
    pub fn finish(&mut self) -> Result<()> {
        let text = |key| self.model.get(key).and_then(Value::as_str).unwrap_or_default();
        match self.format {
            Format::Md if !self.model.is_empty() => {
                let build = format!("mmq {}, {}, {}", text("build_commit"), text("level"), text("cpu_info"));
                self.write(&format!("\n{}\n", build))
            }
            Format::Json if self.model.is_empty() => self.write("[]\n"),
            Format::Json => self.write("\n]\n"),
            _ => Ok(()),
        }
    }

    fn write(&self, text: &str) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        printed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
    }

    /// The columns of a table, and how wide they are; to the left if negative.
    fn columns(&self) -> Vec<(&'static str, isize)> {
        let width = |key: &str| if key == "n_ubatch" { 8 } else { 7 };
        let fixed = [("model", -30), ("size", 10), ("params", 10), ("backend", -10), ("threads", 7)];
        let varied = self.varied.iter().map(|key| (*key, width(key)));
        let end = [("test", 15), ("t/s", 22), ("median", 14)];
        fixed.into_iter().chain(varied).chain(end).collect()
    }

    fn head(&self) -> String {
        let (mut names, mut rule) = (String::from("|"), String::from("|"));
        for (name, width) in self.columns() {
            names += &format!(" {} |", padded(name, width));
            let dashes = "-".repeat(width.unsigned_abs() - 1);
            rule += &if width < 0 { format!(" {dashes}- |") } else { format!(" {dashes}: |") };
        }
        format!("{names}\n{rule}\n")
    }

    fn table_row(&self, row: Option<&Map<String, Value>>, test: &str, value: &str, median: &str) -> String {
        let text = |key: &str| match row.unwrap_or(&self.model).get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        let count = |key: &str| self.model.get(key).and_then(Value::as_u64).unwrap_or_default() as f64;
        let mut line = String::from("|");
        for (name, width) in self.columns() {
            let cell = match name {
                "model" => {
                    let file = text("model_filename");
                    Path::new(&file).file_stem().map_or(file.clone(), |stem| stem.to_string_lossy().into_owned())
                }
                "size" if count("model_size") < f64::from(1 << 30) => {
                    format!("{:.2} MiB", count("model_size") / f64::from(1 << 20))
                }
                "size" => format!("{:.2} GiB", count("model_size") / f64::from(1 << 30)),
                "params" if count("model_n_params") < 1e9 => format!("{:.2} M", count("model_n_params") / 1e6),
                "params" => format!("{:.2} B", count("model_n_params") / 1e9),
                "backend" => text("backends"),
                "threads" => text("n_threads"),
                "test" => test.to_owned(),
                "t/s" => value.to_owned(),
                "median" => median.to_owned(),
                key => text(key),
            };
            line += &format!(" {} |", padded(&super::super::printable(&cell), width));
        }
        line + "\n"
    }
}

fn padded(text: &str, width: isize) -> String {
    let n = width.unsigned_abs();
    if width < 0 { format!("{text:<n$}") } else { format!("{text:>n$}") }
}

/// A value in CSV: in quotation marks, as llama-bench has it.
fn quoted(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        value => value.to_string(),
    };
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The processor's name, where the system tells it, or its architecture.
fn cpu_info() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    name.map_or(std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// A time as ISO 8601 has it, in UTC: `2025-04-24T11:57:09Z`.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March here, so that the odd day is the last; 719468 days lie before 1970, counted from year 0.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let (hours, minutes) = (rest / 3600, rest / 60 % 60);
    format!("{:04}-{month:02}-{day_of_month:02}T{hours:02}:{minutes:02}:{:02}Z", era * 400 + year + next, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_745_495_829, "2025-04-24T11:57:09Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn summaries() {
        let Summary { mean, deviation, median } = Summary::of(&[1.0, 2.0, 3.0, 10.0]);
        assert_eq!((mean, median), (4.0, 2.5));
        assert!((deviation - (50.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!((Summary::of(&[7.0]).deviation, Summary::of(&[7.0]).median), (0.0, 7.0));
        assert_eq!(Summary::of(&[]).mean, 0.0);
    }

    #[test]
    fn names() {
        assert_eq!(Test::Text { n_prompt: 512, n_gen: 0, n_depth: 0 }.name(), "pp512");
        assert_eq!(Test::Text { n_prompt: 0, n_gen: 128, n_depth: 4096 }.name(), "tg128 @ d4096");
        assert_eq!(Test::Text { n_prompt: 1, n_gen: 2, n_depth: 0 }.name(), "pp1+tg2");
    }
}
