//! Rows of blocks to groups of quants: into a panel, or straight into the products of a few tokens.
//!
//! Sixteen rows at a time: 16 bytes of each row are transposed while they are still packed (or come so, interleaved), so
//! that each vector holds 4 bytes of all the rows; the bit operations that follow are the same for every byte.

use super::{load, store, store_floats};
use crate::Dtype;
use crate::block::*;
use crate::panel::{FLOAT_COLS, FloatPanel, PANEL_COLS, PANEL_ROWS, Panel, Source};
use crate::scalar::unpack::offset;
use crate::x86::Rows;
use std::arch::x86_64::*;
use std::mem::offset_of;

pub fn unpack(dtype: Dtype, source: &Source<'_>, panel: &mut Panel) {
    let (weights, size) = dtype.block();
    assert!(source.row_bytes() / size * weights <= PANEL_COLS);
    // SAFETY: this function is in the table of processors with AVX-512 F, BW, DQ, VL and VNNI only.
    unsafe {
        match source {
            Source::Rows(rows) => groups(dtype, &Rows::apart(rows), panel),
            Source::Panel(bytes) => groups(dtype, &Rows::interleaved(bytes), panel),
        }
    }
}

pub fn unpack_float(dtype: Dtype, source: &Source<'_>, panel: &mut FloatPanel) {
    let n = source.row_bytes() / dtype.block().1;
    assert!(n <= FLOAT_COLS);
    // SAFETY: this function is in the table of processors with AVX-512 F, BW, DQ, VL and VNNI only.
    unsafe {
        match source {
            Source::Rows(rows) => columns(dtype, &Rows::apart(rows), 0, n, panel),
            Source::Panel(bytes) => columns(dtype, &Rows::interleaved(bytes), 0, n, panel),
        }
    }
}

/// The array of `$n` vectors `$q`. (The library's functions that make arrays are not inlined with functions of a target
/// feature, and the vectors would pass through memory.)
macro_rules! vectors {
    ($i:ident in $n:literal => $q:expr) => {{
        let mut vectors = [_mm512_setzero_si512(); $n];
        for $i in 0..$n {
            vectors[$i] = $q;
        }
        vectors
    }};
}

/// A loop whose index is a constant in each turn, so that shifts by it are, too.
macro_rules! unrolled {
    ($i:ident in [$($n:literal)*] $body:block) => {
        $({
            let $i: usize = $n;
            $body
        })*
    };
}

mod unpack_small;

/// Takes the groups of 16 rows of quantized weights.
pub(super) trait Groups {
    /// Whether the rows are read as fast as memory gives them, and ought to be asked for ahead.
    const STREAMS: bool;

    /// [`Groups::STREAMS`].
    fn streams(&self) -> bool {
        Self::STREAMS
    }

    /// Group `group` of the rows: `STEPS` times 4 columns. `SIGNED` quants have no min.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and VNNI.
    unsafe fn take<const STEPS: usize, const SIGNED: bool>(
        &mut self,
        group: usize,
        q: [__m512i; STEPS],
        scale: __m512,
        min: __m512,
    );
}

/// Takes the columns of 16 rows of float weights.
pub(super) trait FloatColumns {
    /// As [`Groups::STREAMS`].
    const STREAMS: bool;

    /// Column `column` of the rows.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ, VL and VNNI.
    unsafe fn take(&mut self, column: usize, v: __m512);
}

impl Groups for Panel {
    const STREAMS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn take<const STEPS: usize, const SIGNED: bool>(
        &mut self,
        group: usize,
        q: [__m512i; STEPS],
        scale: __m512,
        min: __m512,
    ) {
        for (to, q) in self.q[STEPS * group..][..STEPS].iter_mut().zip(q) {
            store(to, q);
        }
        store_floats(&mut self.scale[group], scale);
        if !SIGNED {
            store_floats(&mut self.min[group], min);
        }
    }
}

impl FloatColumns for FloatPanel {
    const STREAMS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn take(&mut self, column: usize, v: __m512) {
        store_floats(&mut self.0[column], v);
    }
}

/// A block of the rows. Offsets are those within the block of one row.
#[derive(Clone, Copy)]
struct Block<'a, const INTERLEAVED: bool> {
    rows: &'a Rows<'a, INTERLEAVED>,
    /// Where the block begins in its row; `size` bytes from there on lie in the row.
    first: usize,
    size: usize,
    /// Where it begins in an interleaved panel: beside this, offsets within it are constants.
    panel: *const u8,
    /// Columns of the block.
    weights: usize,
}

impl<'a, const INTERLEAVED: bool> Block<'a, INTERLEAVED> {
    fn new(rows: &'a Rows<'a, INTERLEAVED>, first: usize, size: usize, weights: usize) -> Self {
        assert!(first + size <= rows.len);
        let panel = rows.start[0].wrapping_add(PANEL_ROWS * first);
        Block { rows, first, size, weights, panel }
    }

    /// [`Groups::take`] of unsigned quants.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn unsigned<const STEPS: usize>(
        &self,
        out: &mut impl Groups,
        group: usize,
        q: [__m512i; STEPS],
        scale: __m512,
        min: __m512,
    ) {
        self.ahead::<STEPS>(out, group);
        // SAFETY: this function runs on processors with these features only.
        unsafe { out.take::<STEPS, false>(group, q, scale, min) }
    }

    /// [`Groups::take`] of signed quants.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn signed(&self, out: &mut impl Groups, group: usize, q: [__m512i; 8], scale: __m512) {
        self.ahead::<8>(out, group);
        // SAFETY: this function runs on processors with these features only.
        unsafe { out.take::<8, true>(group, q, scale, _mm512_setzero_ps()) }
    }

    /// Asks for a group's share of what will follow.
    #[inline]
    fn ahead<const STEPS: usize>(&self, out: &impl Groups, group: usize) {
        if out.streams() {
            let n_groups = self.weights / (4 * STEPS);
            self.rows.ahead(self.first, self.size, group % n_groups, n_groups);
        }
    }

    /// The `N` bytes at `at` of row `r`.
    #[inline]
    fn bytes<const N: usize>(&self, r: usize, at: usize) -> &[u8; N] {
        assert!(!INTERLEAVED && at + N <= self.size);
        // SAFETY: the block's bytes lie in the row, and these in the block.
        unsafe { &*self.rows.start[r].add(self.first + at).cast() }
    }

    /// The units of `N / 16` bytes at `at` of the rows of a panel.
    #[inline]
    fn units<const N: usize>(&self, at: usize) -> &[u8; N] {
        assert!(INTERLEAVED && at + N / PANEL_ROWS <= self.size);
        // SAFETY: the block's bytes lie in the panel, 16 times as far from its beginning as in a row, and these in the block.
        unsafe { &*self.panel.add(PANEL_ROWS * at).cast() }
    }

    /// Vector `i` holds bytes `at + 4 i ..` of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn transpose(&self, at: usize) -> [__m512i; 4] {
        if INTERLEAVED {
            return [self.words(at), self.words(at + 4), self.words(at + 8), self.words(at + 12)];
        }
        // SAFETY: 16 bytes are readable, and the load needs no alignment.
        let row = |r: usize| unsafe { _mm_loadu_si128(self.bytes::<16>(r, at).as_ptr().cast()) };
        let four = |r: usize| {
            let v = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(row(r)), row(r + 4));
            _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(v, row(r + 8)), row(r + 12))
        };
        let (a, b, c, d) = (four(0), four(1), four(2), four(3));
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    /// The 32 bytes at `at` of each row, as by [`Block::transpose`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn transpose_32(&self, at: usize) -> [__m512i; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.transpose(at), self.transpose(at + 16));
        [a, b, c, d, e, f, g, h]
    }

    /// The 4 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn words(&self, at: usize) -> __m512i {
        if INTERLEAVED {
            return load(self.units(at));
        }
        // In registers: a vector loaded from where single words were stored waits until they are in the cache.
        let load = |r: usize| i32::from_le_bytes(*self.bytes(r, at));
        let four = |r: usize| _mm_setr_epi32(load(r), load(r + 1), load(r + 2), load(r + 3));
        let v = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(four(0)), four(4));
        _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(v, four(8)), four(12))
    }

    /// The 2 bytes at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn shorts(&self, at: usize) -> __m256i {
        if INTERLEAVED {
            // SAFETY: 32 bytes are readable, and the load needs no alignment.
            return unsafe { _mm256_loadu_si256(self.units::<32>(at).as_ptr().cast()) };
        }
        let load = |r: usize| i16::from_le_bytes(*self.bytes(r, at));
        let eight = |r: usize| {
            let [a, b, c, d] = [load(r), load(r + 1), load(r + 2), load(r + 3)];
            _mm_setr_epi16(a, b, c, d, load(r + 4), load(r + 5), load(r + 6), load(r + 7))
        };
        _mm256_set_m128i(eight(8), eight(0))
    }

    /// The byte at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn singles(&self, at: usize) -> __m128i {
        let mut bytes = [0; 16];
        if INTERLEAVED {
            bytes = *self.units(at);
        } else {
            for (r, to) in bytes.iter_mut().enumerate() {
                *to = self.bytes::<1>(r, at)[0];
            }
        }
        // SAFETY: 16 bytes are readable, and the load needs no alignment.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    /// The F16 at `at` of each row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn floats(&self, at: usize) -> __m512 {
        _mm512_cvtph_ps(self.shorts(at))
    }

    /// The 32 nibbles of the 16 bytes at `at`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn nibbles(&self, at: usize) -> [__m512i; 8] {
        let [a, b, c, d] = self.transpose(at);
        let (low, high) = (|v| field(v, 0, 15), |v| field(v, 4, 15));
        [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
    }
}

/// The fields of each byte that `mask` keeps after a shift to the right by `shift`, which moves bits across bytes:
/// `mask` must cut those off.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn field(v: __m512i, shift: usize, mask: i8) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi16(v, _mm_cvtsi32_si128(shift as i32)), _mm512_set1_epi8(mask))
}

/// Bit `bit` of each byte, moved to bit `to`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn bit(v: __m512i, bit: usize, to: usize) -> __m512i {
    let moved = if bit >= to {
        _mm512_srl_epi16(v, _mm_cvtsi32_si128((bit - to) as i32))
    } else {
        _mm512_sll_epi16(v, _mm_cvtsi32_si128((to - bit) as i32))
    };
    _mm512_and_si512(moved, _mm512_set1_epi8(1 << to))
}

/// The two F16 of each 32-bit lane: the low ones and the high ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn halves(v: __m512i) -> [__m512; 2] {
    [_mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(v)))]
}

/// Byte `i` of each 32-bit lane as a float.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn byte(v: __m512i, i: usize) -> __m512 {
    let v = _mm512_srl_epi32(v, _mm_cvtsi32_si128(8 * i as i32));
    _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(255)))
}

/// Signed byte `i` of each 32-bit lane as a float.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn signed_byte(v: __m512i, i: usize) -> __m512 {
    let v = _mm512_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * i as i32));
    _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(v))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn negate(v: __m512) -> __m512 {
    _mm512_xor_ps(v, _mm512_set1_ps(-0.0))
}

/// The min that makes the quants of a symmetric type with scale `scale` unsigned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn shifted(dtype: Dtype, scale: __m512) -> __m512 {
    _mm512_mul_ps(scale, _mm512_set1_ps(f32::from(offset(dtype))))
}

/// Hands the groups of all blocks of quantized rows to `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn groups<const P: bool, S: Groups>(dtype: Dtype, rows: &Rows<'_, P>, out: &mut S) {
    match dtype {
        Dtype::Q4_0 => blocks(Dtype::Q4_0, rows, out, |b, i, out| q4_0(b, i, out)),
        Dtype::Q4_1 => blocks(Dtype::Q4_1, rows, out, |b, i, out| q4_1(b, i, out)),
        Dtype::Q5_0 => blocks(Dtype::Q5_0, rows, out, |b, i, out| q5_0(b, i, out)),
        Dtype::Q5_1 => blocks(Dtype::Q5_1, rows, out, |b, i, out| q5_1(b, i, out)),
        Dtype::Q8_0 => blocks(Dtype::Q8_0, rows, out, |b, i, out| q8_0(b, i, out)),
        Dtype::IQ4_NL => blocks(Dtype::IQ4_NL, rows, out, |b, i, out| iq4_nl(b, i, out)),
        Dtype::Q2_K => blocks(Dtype::Q2_K, rows, out, |b, i, out| q2_k(b, i, out)),
        Dtype::Q3_K => blocks(Dtype::Q3_K, rows, out, |b, i, out| q3_k(b, i, out)),
        Dtype::Q4_K => blocks(Dtype::Q4_K, rows, out, |b, i, out| q4_k(b, i, out)),
        Dtype::Q5_K => blocks(Dtype::Q5_K, rows, out, |b, i, out| q5_k(b, i, out)),
        Dtype::Q6_K => blocks(Dtype::Q6_K, rows, out, |b, i, out| q6_k(b, i, out)),
        Dtype::IQ4_XS => blocks(Dtype::IQ4_XS, rows, out, |b, i, out| iq4_xs(b, i, out)),
        Dtype::IQ2_XXS => blocks(Dtype::IQ2_XXS, rows, out, |b, i, out| unpack_small::iq2_xxs(b, i, out)),
        Dtype::IQ2_XS => blocks(Dtype::IQ2_XS, rows, out, |b, i, out| unpack_small::iq2_xs(b, i, out)),
        Dtype::IQ2_S => blocks(Dtype::IQ2_S, rows, out, |b, i, out| unpack_small::iq2_s(b, i, out)),
        Dtype::IQ3_XXS => blocks(Dtype::IQ3_XXS, rows, out, |b, i, out| unpack_small::iq3_xxs(b, i, out)),
        Dtype::IQ3_S => blocks(Dtype::IQ3_S, rows, out, |b, i, out| unpack_small::iq3_s(b, i, out)),
        Dtype::IQ1_S => blocks(Dtype::IQ1_S, rows, out, |b, i, out| unpack_small::iq1_s(b, i, out)),
        Dtype::IQ1_M => blocks(Dtype::IQ1_M, rows, out, |b, i, out| unpack_small::iq1_m(b, i, out)),
        Dtype::TQ1_0 => blocks(Dtype::TQ1_0, rows, out, |b, i, out| unpack_small::tq1_0(b, i, out)),
        Dtype::TQ2_0 => blocks(Dtype::TQ2_0, rows, out, |b, i, out| unpack_small::tq2_0(b, i, out)),
        Dtype::Q1_0 => blocks(Dtype::Q1_0, rows, out, |b, i, out| unpack_small::q1_0(b, i, out)),
        Dtype::Q2_0 => blocks(Dtype::Q2_0, rows, out, |b, i, out| unpack_small::q2_0(b, i, out)),
        Dtype::MXFP4 => blocks(Dtype::MXFP4, rows, out, |b, i, out| unpack_small::mxfp4(b, i, out)),
        Dtype::NVFP4 => blocks(Dtype::NVFP4, rows, out, |b, i, out| unpack_small::nvfp4(b, i, out)),
        _ => unreachable!("{dtype} has no quants"),
    }
}

/// Runs `f(block, index, out)` on each block of the rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn blocks<const P: bool, S: Groups>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    out: &mut S,
    f: impl Fn(Block<'_, P>, usize, &mut S),
) {
    let (weights, size) = dtype.block();
    for i in 0..rows.len / size {
        f(Block::new(rows, i * size, size, weights), i, out);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q4_0, d));
    b.unsigned::<8>(out, i, b.nibbles(offset_of!(Q4_0, qs)), d, shifted(Dtype::Q4_0, d));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_1<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, m] = halves(b.words(offset_of!(Q4_1, d)));
    b.unsigned::<8>(out, i, b.nibbles(offset_of!(Q4_1, qs)), d, negate(m));
}

/// The quants of Q5_0 and Q5_1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn five_bits<const P: bool>(b: Block<'_, P>, qh: usize, qs: usize) -> [__m512i; 8] {
    let qh = b.words(qh);
    let mut q = b.nibbles(qs);
    for (s, q) in q.iter_mut().enumerate() {
        // Byte `s / 2` of the word in each byte, and there the bit of each column.
        let from = _mm_add_epi8(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c), _mm_set1_epi8(s as i8 / 2));
        let spread = _mm512_shuffle_epi8(qh, _mm512_broadcast_i32x4(from));
        let set = _mm512_set1_epi32(if s.is_multiple_of(2) { 0x08040201 } else { 0x80402010_u32 as i32 });
        *q = _mm512_mask_add_epi8(*q, _mm512_test_epi8_mask(spread, set), *q, _mm512_set1_epi8(16));
    }
    q
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q5_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q5_0, d));
    let q = five_bits(b, offset_of!(Q5_0, qh), offset_of!(Q5_0, qs));
    b.unsigned::<8>(out, i, q, d, shifted(Dtype::Q5_0, d));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q5_1<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, m] = halves(b.words(offset_of!(Q5_1, d)));
    b.unsigned::<8>(out, i, five_bits(b, offset_of!(Q5_1, qh), offset_of!(Q5_1, qs)), d, negate(m));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q8_0<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    b.signed(out, i, b.transpose_32(offset_of!(Q8_0, qs)), b.floats(offset_of!(Q8_0, d)));
}

/// What 4 bits stand for, in each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn table(codes: &[i8; 16]) -> __m512i {
    // SAFETY: 16 bytes are readable, and the load needs no alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) })
}

/// The values of the 32 codes at `at`, see [`IQ4_CODES`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn iq4<const P: bool>(b: Block<'_, P>, at: usize) -> [__m512i; 8] {
    let codes = table(&IQ4_CODES);
    let mut q = b.nibbles(at);
    for q in &mut q {
        *q = _mm512_shuffle_epi8(codes, *q);
    }
    q
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn iq4_nl<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    b.signed(out, i, iq4(b, offset_of!(IQ4_NL, qs)), b.floats(offset_of!(IQ4_NL, d)));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q2_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let [d, dmin] = halves(b.words(offset_of!(Q2_K, d)));
    for h in 0..2 {
        let q = b.transpose_32(offset_of!(Q2_K, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            // Four groups' scales and mins are in one word.
            let v = b.words(offset_of!(Q2_K, scales) + 8 * h + j / 2 * 4);
            let (scales, mins) = (field(v, 0, 15), field(v, 4, 15));
            for part in 0..2 {
                let scale = _mm512_mul_ps(d, byte(scales, 2 * (j % 2) + part));
                let min = _mm512_mul_ps(dmin, byte(mins, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => field(q[4 * part + s], 2 * j, 3));
                b.unsigned::<4>(out, 16 * i + 8 * h + 2 * j + part, q, scale, min);
            }
        });
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q3_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q3_K, d));
    let scales = offset_of!(Q3_K, scales);
    let (low_a, low_b, upper) = (b.words(scales), b.words(scales + 4), b.words(scales + 8));
    let high = b.transpose_32(offset_of!(Q3_K, hmask));
    unrolled!(h in [0 1] {
        let low = b.transpose_32(offset_of!(Q3_K, qs) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            let word = 2 * h + j / 2;
            let four = field(if word.is_multiple_of(2) { low_a } else { low_b }, word / 2 * 4, 15);
            let two = _mm512_slli_epi16::<4>(field(upper, 2 * word, 3));
            let v = _mm512_sub_epi8(_mm512_or_si512(four, two), _mm512_set1_epi8(32));
            for part in 0..2 {
                let scale = _mm512_mul_ps(d, signed_byte(v, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => {
                    _mm512_or_si512(field(low[4 * part + s], 2 * j, 3), bit(high[4 * part + s], 4 * h + j, 2))
                });
                let group = 16 * i + 8 * h + 2 * j + part;
                b.unsigned::<4>(out, group, q, scale, shifted(Dtype::Q3_K, scale));
            }
        });
    });
}

/// The factors, and the scales and mins of groups by fours in bytes, of Q4_K and Q5_K: their blocks both begin with d,
/// dmin and the packed scales.
struct GroupsK4 {
    d: __m512,
    dmin: __m512,
    scales: [__m512i; 2],
    mins: [__m512i; 2],
}

impl GroupsK4 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn new<const P: bool>(b: Block<'_, P>) -> GroupsK4 {
        const { assert!(offset_of!(Q4_K, scales) == 4 && offset_of!(Q5_K, scales) == 4) };
        let [factors, s, m, rest] = b.transpose(0);
        let [d, dmin] = halves(factors);
        let upper = |v| _mm512_and_si512(_mm512_srli_epi16::<2>(v), _mm512_set1_epi8(0x30));
        GroupsK4 {
            d,
            dmin,
            scales: [field(s, 0, 63), _mm512_or_si512(field(rest, 0, 15), upper(s))],
            mins: [field(m, 0, 63), _mm512_or_si512(field(rest, 4, 15), upper(m))],
        }
    }

    /// Scale and min of group `g`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn get(&self, g: usize) -> (__m512, __m512) {
        let (scale, min) = (byte(self.scales[g / 4], g % 4), byte(self.mins[g / 4], g % 4));
        (_mm512_mul_ps(self.d, scale), _mm512_mul_ps(self.dmin, min))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q4_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let k = GroupsK4::new(b);
    unrolled!(j in [0 1 2 3] {
        let v = b.transpose_32(offset_of!(Q4_K, qs) + 32 * j);
        unrolled!(n in [0 1] {
            let (scale, min) = k.get(2 * j + n);
            let q = vectors!(s in 8 => field(v[s], 4 * n, 15));
            b.unsigned::<8>(out, 8 * i + 2 * j + n, q, scale, min);
        });
    });
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q5_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let k = GroupsK4::new(b);
    let high = b.transpose_32(offset_of!(Q5_K, qh));
    unrolled!(j in [0 1 2 3] {
        let low = b.transpose_32(offset_of!(Q5_K, qs) + 32 * j);
        unrolled!(n in [0 1] {
            let (scale, min) = k.get(2 * j + n);
            let q = vectors!(s in 8 => _mm512_or_si512(field(low[s], 4 * n, 15), bit(high[s], 2 * j + n, 4)));
            b.unsigned::<8>(out, 8 * i + 2 * j + n, q, scale, min);
        });
    });
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn q6_k<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    let d = b.floats(offset_of!(Q6_K, d));
    for h in 0..2 {
        let high = b.transpose_32(offset_of!(Q6_K, qh) + 32 * h);
        unrolled!(j in [0 1 2 3] {
            // Four groups' scales are in one word.
            let v = b.words(offset_of!(Q6_K, scales) + 8 * h + j / 2 * 4);
            let low = b.transpose_32(offset_of!(Q6_K, ql) + 64 * h + j % 2 * 32);
            for part in 0..2 {
                let scale = _mm512_mul_ps(d, signed_byte(v, 2 * (j % 2) + part));
                let q = vectors!(s in 4 => {
                    let upper = field(high[4 * part + s], 2 * j, 3);
                    _mm512_or_si512(field(low[4 * part + s], j / 2 * 4, 15), _mm512_slli_epi16::<4>(upper))
                });
                let group = 16 * i + 8 * h + 2 * j + part;
                b.unsigned::<4>(out, group, q, scale, shifted(Dtype::Q6_K, scale));
            }
        });
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn iq4_xs<const P: bool>(b: Block<'_, P>, i: usize, out: &mut impl Groups) {
    const { assert!(offset_of!(IQ4_XS, scales_h) == 2 && offset_of!(IQ4_XS, scales_l) == 4) };
    let first = b.words(0);
    let low = b.words(offset_of!(IQ4_XS, scales_l));
    let [d, _] = halves(first);
    unrolled!(g in [0 1 2 3 4 5 6 7] {
        let q = iq4(b, offset_of!(IQ4_XS, qs) + 16 * g);
        let shift = |v, n: usize| _mm512_srl_epi32(v, _mm_cvtsi32_si128(n as i32));
        let low = _mm512_and_si512(shift(low, 4 * g), _mm512_set1_epi32(15));
        let high = _mm512_and_si512(shift(first, 16 + 2 * g), _mm512_set1_epi32(3));
        let scale = _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
        let scale = _mm512_cvtepi32_ps(_mm512_sub_epi32(scale, _mm512_set1_epi32(32)));
        b.signed(out, 8 * i + g, q, _mm512_mul_ps(d, scale));
    });
}

/// Hands columns `first..first + n` of rows of floats to `out`, which counts them from 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn columns<const P: bool>(
    dtype: Dtype,
    rows: &Rows<'_, P>,
    first: usize,
    n: usize,
    out: &mut impl FloatColumns,
) {
    let upper = |v| _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
    let lower = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v));
    let bf16 = |v| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(v)));
    match dtype {
        Dtype::F32 => {
            let eight = |b: Block<'_, P>| {
                let [c0, c1, c2, c3, c4, c5, c6, c7] = b.transpose_32(0);
                let f = |v| _mm512_castsi512_ps(v);
                [f(c0), f(c1), f(c2), f(c3), f(c4), f(c5), f(c6), f(c7)]
            };
            eights(4, rows, first, n, out, eight, |b| _mm512_castsi512_ps(b.words(0)));
        }
        Dtype::F16 => {
            let eight = |b: Block<'_, P>| {
                if P {
                    let f = |c: usize| b.floats(2 * c);
                    return [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)];
                }
                let [c0, c2, c4, c6] = b.transpose(0);
                let ([c0, c1], [c2, c3], [c4, c5], [c6, c7]) = (halves(c0), halves(c2), halves(c4), halves(c6));
                [c0, c1, c2, c3, c4, c5, c6, c7]
            };
            eights(2, rows, first, n, out, eight, |b| b.floats(0));
        }
        Dtype::BF16 => {
            let eight = |b: Block<'_, P>| {
                if P {
                    let f = |c: usize| bf16(b.shorts(2 * c));
                    return [f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)];
                }
                let [c0, c2, c4, c6] = b.transpose(0);
                [lower(c0), upper(c0), lower(c2), upper(c2), lower(c4), upper(c4), lower(c6), upper(c6)]
            };
            eights(2, rows, first, n, out, eight, |b| bf16(b.shorts(0)));
        }
        _ => unreachable!("{dtype} has quants"),
    }
}

/// Walks columns of `size` bytes by eights with `eight`, and what is left of them with `one`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn eights<'a, const P: bool, S: FloatColumns>(
    size: usize,
    rows: &'a Rows<'a, P>,
    first: usize,
    n: usize,
    out: &mut S,
    eight: impl Fn(Block<'a, P>) -> [__m512; 8],
    one: impl Fn(Block<'a, P>) -> __m512,
) {
    for c in (0..n / 8 * 8).step_by(8) {
        let at = (first + c) * size;
        if S::STREAMS {
            rows.ahead(at, 8 * size, 0, 1);
        }
        for (i, v) in eight(Block::new(rows, at, 8 * size, 8)).into_iter().enumerate() {
            // SAFETY: this function runs on processors with these features only.
            unsafe { out.take(c + i, v) };
        }
    }
    for c in n / 8 * 8..n {
        // SAFETY: as above.
        unsafe { out.take(c, one(Block::new(rows, (first + c) * size, size, 1))) };
    }
}
