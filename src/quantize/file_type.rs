//! What a model file can be asked to be: the file types of llama.cpp, with its names and numbers.

use crate::Dtype;

/// A type for most matrices of a file, and a mix of other types for the rest. The numbers are those of `general.file_type`
/// in `llama.h`.
#[allow(non_camel_case_types)]
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FileType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 7,
    Q5_0 = 8,
    Q5_1 = 9,
    Q2_K = 10,
    Q3_K_S = 11,
    Q3_K_M = 12,
    Q3_K_L = 13,
    Q4_K_S = 14,
    Q4_K_M = 15,
    Q5_K_S = 16,
    Q5_K_M = 17,
    Q6_K = 18,
    IQ2_XXS = 19,
    IQ2_XS = 20,
    Q2_K_S = 21,
    IQ3_XS = 22,
    IQ3_XXS = 23,
    IQ1_S = 24,
    IQ4_NL = 25,
    IQ3_S = 26,
    IQ3_M = 27,
    IQ2_S = 28,
    IQ2_M = 29,
    IQ4_XS = 30,
    IQ1_M = 31,
    BF16 = 32,
    TQ1_0 = 36,
    TQ2_0 = 37,
    MXFP4_MOE = 38,
    Q1_0 = 40,
    Q2_0 = 41,
}

impl FileType {
    /// Every file type, from the largest to the smallest of each family, as help lists them.
    pub const ALL: [FileType; 35] = {
        use FileType::*;
        [
            F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_K_S, Q4_K_M, Q4_K_S, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K, Q2_K_S, Q5_1,
            Q5_0, Q4_1, Q4_0, IQ4_NL, IQ4_XS, IQ3_M, IQ3_S, IQ3_XS, IQ3_XXS, IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M,
            IQ1_S, TQ2_0, TQ1_0, MXFP4_MOE, Q2_0, Q1_0,
        ]
    };

    /// The file type that `text` names, in any case, or whose number it is. `Q3_K`, `Q4_K` and `Q5_K` are the `_M` mixes.
    pub fn parse(text: &str) -> Option<FileType> {
        if let Ok(number) = text.parse::<u32>() {
            return FileType::from_number(number);
        }
        let text = text.to_ascii_uppercase();
        match text.as_str() {
            "Q3_K" => Some(FileType::Q3_K_M),
            "Q4_K" => Some(FileType::Q4_K_M),
            "Q5_K" => Some(FileType::Q5_K_M),
            _ => FileType::ALL.into_iter().find(|t| t.name() == text),
        }
    }

    /// The file type with the number `general.file_type`.
    pub fn from_number(number: u32) -> Option<FileType> {
        FileType::ALL.into_iter().find(|t| *t as u32 == number)
    }

    /// The plainest file type most of whose weights are `dtype`.
    pub fn mostly(dtype: Dtype) -> Option<FileType> {
        Some(match dtype {
            Dtype::Q2_K => FileType::Q2_K,
            Dtype::Q3_K => FileType::Q3_K_M,
            Dtype::Q4_K => FileType::Q4_K_M,
            Dtype::Q5_K => FileType::Q5_K_M,
            Dtype::IQ2_S => FileType::IQ2_M,
            Dtype::IQ2_XS => FileType::IQ2_XS,
            Dtype::IQ3_S => FileType::IQ3_S,
            other => FileType::ALL.into_iter().find(|t| t.dtype() == other)?,
        })
    }

    /// The type of the matrices that no rule gives another one.
    pub const fn dtype(self) -> Dtype {
        match self {
            FileType::F32 => Dtype::F32,
            FileType::F16 => Dtype::F16,
            FileType::BF16 => Dtype::BF16,
            FileType::Q4_0 => Dtype::Q4_0,
            FileType::Q4_1 => Dtype::Q4_1,
            FileType::Q5_0 => Dtype::Q5_0,
            FileType::Q5_1 => Dtype::Q5_1,
            FileType::Q8_0 => Dtype::Q8_0,
            FileType::Q2_K | FileType::Q2_K_S => Dtype::Q2_K,
            FileType::Q3_K_S | FileType::Q3_K_M | FileType::Q3_K_L => Dtype::Q3_K,
            FileType::Q4_K_S | FileType::Q4_K_M => Dtype::Q4_K,
            FileType::Q5_K_S | FileType::Q5_K_M => Dtype::Q5_K,
            FileType::Q6_K => Dtype::Q6_K,
            FileType::IQ1_S => Dtype::IQ1_S,
            FileType::IQ1_M => Dtype::IQ1_M,
            FileType::IQ2_XXS => Dtype::IQ2_XXS,
            FileType::IQ2_XS | FileType::IQ2_S => Dtype::IQ2_XS,
            FileType::IQ2_M => Dtype::IQ2_S,
            FileType::IQ3_XXS => Dtype::IQ3_XXS,
            FileType::IQ3_XS | FileType::IQ3_S | FileType::IQ3_M => Dtype::IQ3_S,
            FileType::IQ4_NL => Dtype::IQ4_NL,
            FileType::IQ4_XS => Dtype::IQ4_XS,
            FileType::TQ1_0 => Dtype::TQ1_0,
            FileType::TQ2_0 => Dtype::TQ2_0,
            FileType::MXFP4_MOE => Dtype::MXFP4,
            FileType::Q1_0 => Dtype::Q1_0,
            FileType::Q2_0 => Dtype::Q2_0,
        }
    }

    /// llama.cpp's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            FileType::Q2_K_S => "Q2_K_S",
            FileType::Q3_K_S => "Q3_K_S",
            FileType::Q3_K_M => "Q3_K_M",
            FileType::Q3_K_L => "Q3_K_L",
            FileType::Q4_K_S => "Q4_K_S",
            FileType::Q4_K_M => "Q4_K_M",
            FileType::Q5_K_S => "Q5_K_S",
            FileType::Q5_K_M => "Q5_K_M",
            FileType::IQ2_S => "IQ2_S",
            FileType::IQ2_M => "IQ2_M",
            FileType::IQ3_XS => "IQ3_XS",
            FileType::IQ3_M => "IQ3_M",
            FileType::MXFP4_MOE => "MXFP4_MOE",
            other => other.dtype().name(),
        }
    }
}

impl std::fmt::Display for FileType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for t in FileType::ALL {
            assert_eq!(FileType::parse(t.name()), Some(t));
            assert_eq!(FileType::parse(&t.name().to_lowercase()), Some(t));
            assert_eq!(FileType::parse(&(t as u32).to_string()), Some(t));
        }
        assert_eq!(FileType::parse("q4_k"), Some(FileType::Q4_K_M));
        assert_eq!(FileType::parse("2"), Some(FileType::Q4_0));
        assert_eq!(FileType::mostly(Dtype::Q4_0), Some(FileType::Q4_0));
        for wrong in ["", "4", "Q4", "Q4_K_XL", "-1", "2.0"] {
            assert_eq!(FileType::parse(wrong), None, "{wrong}");
        }
    }
}
