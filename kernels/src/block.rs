//! The block formats of GGUF tensors: ids, sizes and bit layouts. Drawn here, nowhere else.
//!
//! In the drawings `q[a..b]` are the weights of a block in order, `lo`/`hi` the halves of a byte, and `d` an F16 factor.
//! A weight is `scale · q − min` with one scale, and for some formats one min, for each group of 16 or 32 weights.

/// Number of weights in a super-block of the K formats.
pub const QK_K: usize = 256;

/// The type of a tensor's elements, with GGUF's ids.
///
/// Every id that GGUF files are known to carry is listed, so that a file can be checked and
/// inspected; [`Dtype::is_runnable`] tells which of them have kernels.
#[allow(non_camel_case_types)]
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Dtype {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

impl Dtype {
    /// Every known type.
    pub const ALL: [Dtype; 35] = {
        use Dtype::*;
        [
            F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ2_XXS, IQ2_XS, IQ3_XXS,
            IQ1_S, IQ4_NL, IQ3_S, IQ2_S, IQ4_XS, I8, I16, I32, I64, F64, IQ1_M, BF16, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0,
            Q2_0,
        ]
    };

    /// Every type that has kernels.
    pub const RUNNABLE: [Dtype; 28] = {
        use Dtype::*;
        [
            F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, IQ3_S, IQ3_XXS,
            IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S, TQ2_0, TQ1_0, MXFP4, NVFP4, Q2_0, Q1_0,
        ]
    };

    /// The type with GGUF's id `id`.
    pub fn from_id(id: u32) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| *d as u32 == id)
    }

    /// `(weights, bytes)` of one block.
    pub const fn block(self) -> (usize, usize) {
        use Dtype::*;
        match self {
            F32 | I32 => (1, 4),
            F16 | BF16 | I16 => (1, 2),
            I8 => (1, 1),
            I64 | F64 => (1, 8),
            Q4_0 | IQ4_NL => (32, 18),
            Q4_1 => (32, 20),
            Q5_0 => (32, 22),
            Q5_1 => (32, 24),
            Q8_0 => (32, 34),
            Q8_1 => (32, 36),
            Q2_K => (QK_K, 84),
            Q3_K => (QK_K, 110),
            Q4_K => (QK_K, 144),
            Q5_K => (QK_K, 176),
            Q6_K => (QK_K, 210),
            Q8_K => (QK_K, 292),
            IQ2_XXS => (QK_K, 66),
            IQ2_XS => (QK_K, 74),
            IQ3_XXS => (QK_K, 98),
            IQ1_S => (QK_K, 50),
            IQ3_S => (QK_K, 110),
            IQ2_S => (QK_K, 82),
            IQ4_XS => (QK_K, 136),
            IQ1_M => (QK_K, 56),
            TQ1_0 => (QK_K, 54),
            TQ2_0 => (QK_K, 66),
            MXFP4 => (32, 17),
            NVFP4 => (64, 36),
            Q1_0 => (128, 18),
            Q2_0 => (64, 18),
        }
    }

    /// Bytes of a row of `n` weights, or `None` if `n` is no whole number of blocks or the size overflows.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        let (weights, bytes) = self.block();
        if n.is_multiple_of(weights) { (n / weights).checked_mul(bytes) } else { None }
    }

    /// Bits of storage for each weight.
    pub fn bits_per_weight(self) -> f64 {
        let (weights, bytes) = self.block();
        bytes as f64 * 8.0 / weights as f64
    }

    /// Whether kernels exist for it.
    pub fn is_runnable(self) -> bool {
        Dtype::RUNNABLE.contains(&self)
    }

    /// Whether its elements are floats of 16 or 32 bits, as models come from their authors.
    pub const fn is_float(self) -> bool {
        matches!(self, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }

    /// GGUF's name for it.
    pub const fn name(self) -> &'static str {
        use Dtype::*;
        match self {
            F32 => "F32",
            F16 => "F16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q8_1 => "Q8_1",
            Q2_K => "Q2_K",
            Q3_K => "Q3_K",
            Q4_K => "Q4_K",
            Q5_K => "Q5_K",
            Q6_K => "Q6_K",
            Q8_K => "Q8_K",
            IQ2_XXS => "IQ2_XXS",
            IQ2_XS => "IQ2_XS",
            IQ3_XXS => "IQ3_XXS",
            IQ1_S => "IQ1_S",
            IQ4_NL => "IQ4_NL",
            IQ3_S => "IQ3_S",
            IQ2_S => "IQ2_S",
            IQ4_XS => "IQ4_XS",
            I8 => "I8",
            I16 => "I16",
            I32 => "I32",
            I64 => "I64",
            F64 => "F64",
            IQ1_M => "IQ1_M",
            BF16 => "BF16",
            TQ1_0 => "TQ1_0",
            TQ2_0 => "TQ2_0",
            MXFP4 => "MXFP4",
            NVFP4 => "NVFP4",
            Q1_0 => "Q1_0",
            Q2_0 => "Q2_0",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A block as it lies in a file: bytes only, no alignment, no padding.
///
/// # Safety
/// The type is `repr(C)`, made of bytes only, and as large as `DTYPE.block()` says.
pub unsafe trait Block: Sized {
    /// The tensor type that consists of these blocks.
    const DTYPE: Dtype;

    /// The whole blocks in `bytes`.
    fn slice(bytes: &[u8]) -> &[Self] {
        const { assert!(size_of::<Self>() == Self::DTYPE.block().1 && align_of::<Self>() == 1) };
        // SAFETY: `Self` is bytes only with alignment 1, and the length is rounded down to whole blocks.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Self>()) }
    }
}

/// F16 bits, little-endian.
pub type Half = [u8; 2];

macro_rules! blocks {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty,)* })*) => { $(
        $(#[$doc])*
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $ty,)* }
        // SAFETY: `repr(C)` over arrays of bytes; `Block::slice` checks the size when it is compiled.
        unsafe impl Block for $name { const DTYPE: Dtype = Dtype::$name; }
    )* };
}

blocks! {
    /// 32 weights `d · (q − 8)`, q of 4 bits.
    Q4_0 {
        /// Scale.
        d: Half,
        /// Byte i: lo = `q[i]`, hi = q[16 + i].
        qs: [u8; 16],
    }
    /// 32 weights `d · q + m`, q of 4 bits.
    Q4_1 {
        /// Scale.
        d: Half,
        /// Minimum.
        m: Half,
        /// As in [`Q4_0`].
        qs: [u8; 16],
    }
    /// 32 weights `d · (q − 16)`, q of 5 bits.
    Q5_0 {
        /// Scale.
        d: Half,
        /// Bit i of the little-endian word: bit 4 of `q[i]`.
        qh: [u8; 4],
        /// Bits 0 to 3, as in [`Q4_0`].
        qs: [u8; 16],
    }
    /// 32 weights `d · q + m`, q of 5 bits.
    Q5_1 {
        /// Scale.
        d: Half,
        /// Minimum.
        m: Half,
        /// As in [`Q5_0`].
        qh: [u8; 4],
        /// As in [`Q5_0`].
        qs: [u8; 16],
    }
    /// 32 weights `d · q`, q signed bytes.
    Q8_0 {
        /// Scale.
        d: Half,
        /// Byte i: `q[i]` as `i8`.
        qs: [u8; 32],
    }
    /// 256 weights in groups of 16, `d · s · q − dmin · m`, q of 2 bits.
    Q2_K {
        /// Group g: lo = s, hi = m.
        scales: [u8; 16],
        /// For half h of 128 weights, byte 32 h + i, bits 2j and 2j + 1: q[128 h + 32 j + i].
        qs: [u8; 64],
        /// Factor of the scales.
        d: Half,
        /// Factor of the mins.
        dmin: Half,
    }
    /// 256 weights in groups of 16, `d · (s − 32) · (q − 4)`, q of 3 bits and s of 6.
    Q3_K {
        /// Byte i, bit j: bit 2 of q[32 j + i].
        hmask: [u8; 32],
        /// Bits 0 and 1, as in [`Q2_K`].
        qs: [u8; 64],
        /// Bits 0 to 3 of s: byte i < 8 has lo = `s[i]`, hi = s[8 + i].
        /// Bits 4 and 5: byte 8 + i, bits 2j and 2j + 1: s[4 j + i].
        scales: [u8; 12],
        /// Factor of the scales.
        d: Half,
    }
    /// 256 weights in groups of 32, `d · s · q − dmin · m`, q of 4 bits, s and m of 6.
    Q4_K {
        /// Factor of the scales.
        d: Half,
        /// Factor of the mins.
        dmin: Half,
        /// For i < 4: byte i has `s[i]` in bits 0 to 5, byte 4 + i has `m[i]` there; byte 8 + i has lo = bits 0 to 3 of
        /// s[4 + i], hi = bits 0 to 3 of m[4 + i], whose bits 4 and 5 are bits 6 and 7 of byte i and of byte 4 + i.
        scales: [u8; 12],
        /// For j < 4, byte 32 j + i: lo = q[64 j + i], hi = q[64 j + 32 + i].
        qs: [u8; 128],
    }
    /// 256 weights in groups of 32, `d · s · q − dmin · m`, q of 5 bits, s and m of 6.
    Q5_K {
        /// Factor of the scales.
        d: Half,
        /// Factor of the mins.
        dmin: Half,
        /// As in [`Q4_K`].
        scales: [u8; 12],
        /// Byte i, bit j: bit 4 of q[32 j + i].
        qh: [u8; 32],
        /// Bits 0 to 3, as in [`Q4_K`].
        qs: [u8; 128],
    }
    /// 256 weights in groups of 16, `d · s · (q − 32)`, q of 6 bits, s a signed byte.
    Q6_K {
        /// Bits 0 to 3. For half h of 128 weights and i < 64, byte 64 h + i: lo = q[128 h + i], hi = q[128 h + 64 + i].
        ql: [u8; 128],
        /// Bits 4 and 5. For half h, byte 32 h + i, bits 2j and 2j + 1: q[128 h + 32 j + i].
        qh: [u8; 64],
        /// Byte g: s of group g as `i8`.
        scales: [u8; 16],
        /// Factor of the scales.
        d: Half,
    }
    /// 32 weights `d · CODE[q]`, q of 4 bits; the codes are [`IQ4_CODES`].
    IQ4_NL {
        /// Scale.
        d: Half,
        /// As in [`Q4_0`].
        qs: [u8; 16],
    }
    /// 256 weights in groups of 32, `d · (s − 32) · CODE[q]`, q of 4 bits, s of 6; the codes are [`IQ4_CODES`].
    IQ4_XS {
        /// Factor of the scales.
        d: Half,
        /// Bits 2g and 2g + 1 of the little-endian word: bits 4 and 5 of `s[g]`.
        scales_h: [u8; 2],
        /// Bits 0 to 3. Byte i: lo = s[2 i], hi = s[2 i + 1].
        scales_l: [u8; 4],
        /// For group g, byte 16 g + i: lo = q[32 g + i], hi = q[32 g + 16 + i].
        qs: [u8; 128],
    }
    /// 256 weights in groups of 32, `d · (2 s + 1)/8 · q`, s of 4 bits; each 8 are a signed point of [`crate::grid::IQ2_XXS`].
    IQ2_XXS {
        /// Factor of the scales.
        d: Half,
        /// For group g, byte 8 g + j, j < 4: the code of the point of weights `32 g + 8 j ..`; and a little-endian word, bytes
        /// 8 g + 4 and on: bits 7 j and on have the [`even_signs`] of those, bits 28 to 31 are `s[g]`.
        qs: [u8; 64],
    }
    /// 256 weights in groups of 16, `d · (2 s + 1)/8 · q`, s of 4 bits; each 8 are a signed point of [`crate::grid::IQ2_XS`].
    IQ2_XS {
        /// Factor of the scales.
        d: Half,
        /// Little-endian word j of 16 bits, for weights `8 j ..`: bits 0 to 8 are the point's code, the others its
        /// [`even_signs`].
        qs: [u8; 64],
        /// Byte i: lo = s[2 i], hi = s[2 i + 1].
        scales: [u8; 8],
    }
    /// 256 weights in groups of 16, `d · (2 s + 1)/8 · q`, s of 4 bits; each 8 are a signed point of [`crate::grid::IQ2_S`].
    IQ2_S {
        /// Factor of the scales.
        d: Half,
        /// Byte j: bits 0 to 7 of the code of weights `8 j ..`.
        qs: [u8; 32],
        /// Byte j, bit i: weight 8 j + i is negative.
        signs: [u8; 32],
        /// Byte i, bits 2 j and 2 j + 1: bits 8 and 9 of code 4 i + j.
        qh: [u8; 8],
        /// Byte i: lo = s[2 i], hi = s[2 i + 1].
        scales: [u8; 8],
    }
    /// 256 weights in groups of 32, `d · (2 s + 1)/2 · q`, s of 4 bits; each 4 are a signed point of [`crate::grid::IQ3_XXS`].
    IQ3_XXS {
        /// Factor of the scales.
        d: Half,
        /// Byte j: the code of weights `4 j ..`.
        qs: [u8; 64],
        /// Little-endian word g of 32 bits: bits 7 j and on have the [`even_signs`] of weights `32 g + 8 j ..`, bits 28 to 31
        /// are `s[g]`.
        signs: [u8; 32],
    }
    /// 256 weights in groups of 32, `d · (2 s + 1) · q`, s of 4 bits; each 4 are a signed point of [`crate::grid::IQ3_S`].
    IQ3_S {
        /// Factor of the scales.
        d: Half,
        /// Byte j: bits 0 to 7 of the code of weights `4 j ..`.
        qs: [u8; 64],
        /// Byte i, bit j: bit 8 of code 8 i + j.
        qh: [u8; 8],
        /// Byte j, bit i: weight 8 j + i is negative.
        signs: [u8; 32],
        /// Byte i: lo = s[2 i], hi = s[2 i + 1].
        scales: [u8; 4],
    }
    /// 256 weights in groups of 32, `d · (2 s + 1)/8 · (p − 8 ± 1)`, s of 3 bits; each 8 are a point p of [`crate::grid::IQ1`].
    IQ1_S {
        /// Factor of the scales.
        d: Half,
        /// Byte j: bits 0 to 7 of the code of weights `8 j ..`.
        qs: [u8; 32],
        /// Little-endian word g of 16 bits: bits 3 j and on are bits 8 to 10 of code 4 g + j, bits 12 to 14 are `s[g]`, and
        /// bit 15 makes the group's ±1 a −1.
        qh: [u8; 16],
    }
    /// 256 weights in groups of 16, `d · (2 s + 1)/8 · (p − 8 ± 1)`, s of 3 bits; each 8 are a point p of [`crate::grid::IQ1`].
    IQ1_M {
        /// Byte j: bits 0 to 7 of the code of weights `8 j ..`.
        qs: [u8; 32],
        /// Byte i: lo for code 2 i, hi for code 2 i + 1. Bits 0 to 2 are its bits 8 to 10, bit 3 makes its ±1 a −1.
        qh: [u8; 16],
        /// Little-endian word i of 16 bits: bits 3 j and on are s[4 i + j], bits 12 to 15 are bits 4 i to 4 i + 3 of the F16
        /// factor of the scales.
        scales: [u8; 8],
    }
    /// 256 weights `d · (q − 1)`, q in 0..3: the first digits to base 3 of a fraction b/256, five to a byte b. Digit n is
    /// `((b · 3ⁿ mod 256) · 3) >> 8`.
    TQ1_0 {
        /// Digit n: of byte i < 32, q[32 n + i]; of byte 32 + i, q[160 + 16 n + i].
        qs: [u8; 48],
        /// Byte i, digit n < 4: q[240 + 4 n + i].
        qh: [u8; 4],
        /// Scale.
        d: Half,
    }
    /// 256 weights `d · (q − 1)`, q of 2 bits.
    TQ2_0 {
        /// As in [`Q2_K`].
        qs: [u8; 64],
        /// Scale.
        d: Half,
    }
    /// 64 weights `d · (q − 1)`, q of 2 bits.
    Q2_0 {
        /// Scale.
        d: Half,
        /// Byte i, bits 2 j and on: q[4 i + j].
        qs: [u8; 16],
    }
    /// 128 weights `d` or `−d`.
    Q1_0 {
        /// Scale.
        d: Half,
        /// Byte i, bit j: weight 8 i + j is positive.
        qs: [u8; 16],
    }
    /// 32 weights `2^(e − 128) · CODE[q]`, q of 4 bits; the codes are [`FP4_CODES`].
    MXFP4 {
        /// Its scale is [`mxfp4_scale`].
        e: u8,
        /// As in [`Q4_0`].
        qs: [u8; 16],
    }
    /// 64 weights in groups of 16, `d · CODE[q]`, q of 4 bits; the codes are [`FP4_CODES`].
    NVFP4 {
        /// Byte g: d of group g, one of [`NVFP4_SCALES`].
        d: [u8; 4],
        /// For group g, byte 8 g + i: lo = q[16 g + i], hi = q[16 g + 8 + i].
        qs: [u8; 32],
    }
}

/// The signs of 8 weights, bit i for weight i: the first 7 are stored, and the last makes the number of negative weights even.
pub const fn even_signs(stored: u8) -> u8 {
    stored & 127 | ((stored & 127).count_ones() as u8 & 1) << 7
}

/// The scale that a byte of MXFP4 stands for, `2^(e − 128)`.
pub const fn mxfp4_scale(e: u8) -> f32 {
    // The first two are below the normal numbers.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

/// The scales that the bytes of NVFP4 stand for: halves of unsigned numbers with 4 bits of exponent and 3 of mantissa, whose
/// NaN counts as 0.
pub static NVFP4_SCALES: [f32; 256] = {
    let mut scales = [0.0; 256];
    let mut byte: u32 = 0;
    while byte < 256 {
        let (exponent, mantissa) = (byte >> 3 & 15, byte & 7);
        scales[byte as usize] = match exponent {
            _ if byte == 0x7f => 0.0,
            0 => mantissa as f32 / 1024.0,
            // (1 + mantissa/8) · 2^(exponent − 8)
            _ => f32::from_bits((exponent + 127 - 8) << 23 | mantissa << 20),
        };
        byte += 1;
    }
    scales
};

/// Doubles of the values that the 4-bit codes of MXFP4 and NVFP4 stand for.
pub const FP4_CODES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The values that the 4-bit codes of IQ4_NL and IQ4_XS stand for.
pub const IQ4_CODES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
