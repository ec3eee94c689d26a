//! Batches of blocks: from rows of floats to lanes, and from lanes to the bytes of blocks.

use super::lanes::{Lanes, MAX_LANES, Task};
use crate::Dtype;
use std::marker::PhantomData;

/// How the blocks of a type are made, `W` weights each.
pub(crate) trait Format<const W: usize> {
    /// The type.
    const DTYPE: Dtype;
    /// Whether `mean_square` is wanted where there is an importance.
    const NEEDS_ROWS: bool = false;

    /// Writes a block for each lane. `mean_square` is that of a block's whole row if [`Format::NEEDS_ROWS`] holds and there is
    /// an importance, and else 0.
    fn encode<V: Lanes>(x: &[V; W], importance: Option<&[V; W]>, mean_square: V, out: &mut Out<'_>);
}

/// The blocks of a batch, one for each of the first lanes.
pub(crate) struct Out<'a> {
    bytes: &'a mut [u8],
    size: usize,
}

impl Out<'_> {
    /// Byte `at` of each block, from integers.
    #[inline(always)]
    pub fn byte<V: Lanes>(&mut self, at: usize, value: V) {
        let from = value.to_bytes();
        for (block, byte) in self.bytes.chunks_exact_mut(self.size).zip(from) {
            block[at] = byte;
        }
    }

    /// Bytes `at` and `at + 1` of each block: a float in F16. Returns it as the block has it.
    #[inline(always)]
    pub fn half<V: Lanes>(&mut self, at: usize, value: V) -> V {
        let bits = value.to_f16();
        for (block, bits) in self.bytes.chunks_exact_mut(self.size).zip(bits) {
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        V::from_f16(&bits)
    }
}

/// Rows to blocks of format `F`, see [`crate::quantize::quantize`].
pub(crate) struct Rows<'a, F, const W: usize> {
    pub x: &'a [f32],
    pub n_cols: usize,
    pub importance: Option<&'a [f32]>,
    pub out: &'a mut [u8],
    pub format: PhantomData<F>,
}

impl<F: Format<W>, const W: usize> Task for Rows<'_, F, W> {
    type Output = ();

    #[inline(always)]
    fn run<V: Lanes>(self) {
        let size = F::DTYPE.block().1;
        let x = self.x.as_chunks::<W>().0;
        let per_row = self.n_cols / W;
        let rows = match self.importance {
            Some(_) if F::NEEDS_ROWS => mean_squares::<V>(self.x, self.n_cols),
            _ => Vec::new(),
        };
        let zero = V::splat(0.0);
        let (mut lanes, mut weights) = ([zero; W], [zero; W]);
        let batches = x.chunks(V::N).zip(self.out.chunks_mut(V::N * size));
        for (batch, (blocks, bytes)) in batches.enumerate() {
            let first = batch * V::N;
            gather(|l| &blocks[l.min(blocks.len() - 1)], &mut lanes);
            let block = |l: usize| first + l.min(blocks.len() - 1);
            let importance = self.importance.map(|w| {
                let w = w.as_chunks::<W>().0;
                gather(|l| &w[block(l) % per_row], &mut weights);
                &weights
            });
            let mut mean = [0.0; MAX_LANES];
            if !rows.is_empty() {
                mean.iter_mut().take(V::N).enumerate().for_each(|(l, m)| *m = rows[block(l) / per_row]);
            }
            F::encode(&lanes, importance, V::load(&mean), &mut Out { bytes, size });
        }
    }
}

/// Blocks to lanes.
#[inline(always)]
fn gather<'a, V: Lanes, const W: usize>(block: impl Fn(usize) -> &'a [f32; W], lanes: &mut [V; W]) {
    let blocks: [&[f32; W]; MAX_LANES] = std::array::from_fn(|l| block(l.min(V::N - 1)));
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = V::load(&std::array::from_fn(|l| blocks[l][i]));
    }
}

/// The mean square of each row, summed in order.
#[inline(always)]
fn mean_squares<V: Lanes>(x: &[f32], n_cols: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = x.chunks_exact(n_cols).collect();
    let mut means = Vec::with_capacity(rows.len());
    for rows in rows.chunks(V::N) {
        let row: [&[f32]; MAX_LANES] = std::array::from_fn(|l| rows[l.min(rows.len() - 1)]);
        let sum = (0..n_cols).fold(V::splat(0.0), |sum, i| {
            let x = V::load(&row.map(|row| row[i]));
            sum + x * x
        });
        let mut mean = [0.0; MAX_LANES];
        (sum / V::splat(n_cols as f32)).store(&mut mean);
        means.extend_from_slice(&mean[..rows.len()]);
    }
    means
}
