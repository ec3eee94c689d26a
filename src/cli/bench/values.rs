//! Lists of numbers as llama-bench takes them: `16,64-256*2`.

use std::str::FromStr;

/// Most numbers that a flag may stand for, and the largest of them.
const MOST: usize = 10_000;
const LARGEST: usize = i32::MAX as usize;

/// Numbers from one flag: parts separated by commas, each `A`, `A-B`, `A-B+STEP` or `A-B*FACTOR`.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers(Vec<usize>);

impl Numbers {
    /// The numbers of all `flags`, or `default` alone if there are none.
    pub fn all(flags: &[Numbers], default: usize) -> Vec<usize> {
        match flags {
            [] => vec![default],
            flags => flags.iter().flat_map(|numbers| numbers.0.iter().copied()).collect(),
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n <= LARGEST && text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(format!("expected a number from 0 to {LARGEST}, got {text:?}")),
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let Some((first, rest)) = part.split_once('-') else {
                numbers.push(number(part)?);
                continue;
            };
            let (last, step) = match rest.find(['+', '*']) {
                Some(at) => (&rest[..at], Some((rest.as_bytes()[at] == b'*', number(&rest[at + 1..])?))),
                None => (rest, None),
            };
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(format!("{part}: {last} is less than {first}"));
            }
            let (factor, step) = step.unwrap_or((false, 1));
            let mut n = first;
            while n <= last {
                if numbers.len() == MOST {
                    return Err(format!("{part}: more than {MOST} numbers"));
                }
                numbers.push(n);
                // Both are below 2^31, so that neither the sum nor the product overflows 64 bits; saturation ends it else.
                let next = if factor { n.saturating_mul(step) } else { n.saturating_add(step) };
                if next <= n {
                    return Err(format!("{part}: never gets from {n} to {last}"));
                }
                n = next;
            }
        }
        Ok(Numbers(numbers))
    }
}

/// `N,M`: tokens of a prompt and tokens written behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair(pub usize, pub usize);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Pair, String> {
        let Some((n_prompt, n_gen)) = text.split_once(',') else {
            return Err("expected two numbers N,M".into());
        };
        match (number(n_prompt)?, number(n_gen)?) {
            (0, _) | (_, 0) => Err("expected two numbers above 0".into()),
            (n_prompt, n_gen) => Ok(Pair(n_prompt, n_gen)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        for (text, expected) in [
            ("0", vec![0]),
            ("512,16", vec![512, 16]),
            ("1-3", vec![1, 2, 3]),
            ("1-8+3,9", vec![1, 4, 7, 9]),
            ("16-128*2", vec![16, 32, 64, 128]),
            ("5-5*1", vec![]),
        ] {
            let got = text.parse::<Numbers>();
            match expected.is_empty() {
                false => assert_eq!(got, Ok(Numbers(expected)), "{text}"),
                true => assert!(got.is_err(), "{text}"),
            }
        }
        for text in
            ["", "a", "-1", "1,", "3-1", "1-9+0", "0-9*2", "1-9*1", "1-2147483647", "2147483648", "+1", "1-2+", "1-2/3"]
        {
            assert!(text.parse::<Numbers>().is_err(), "{text}");
        }
        assert_eq!(Numbers::all(&[], 512), [512]);
        assert_eq!(Numbers::all(&[Numbers(vec![1, 2]), Numbers(vec![3])], 512), [1, 2, 3]);
    }

    #[test]
    fn pairs() {
        assert_eq!("512,128".parse(), Ok(Pair(512, 128)));
        for text in ["512", "512,0", "0,1", "1,2,3", "a,1", ""] {
            assert!(text.parse::<Pair>().is_err(), "{text}");
        }
    }
}
