//! The order in which a picture's features stand in the prompt, with the newlines between them, and how they are made
//! fewer than the encoder gives.

use super::select::{self, MAX_ROWS};
use crate::ops::Cx;
use crate::{Error, Result, bail};
use std::num::NonZeroUsize;
use std::str::FromStr;

/// How many positions of the prompt a picture may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageTokens {
    /// Most positions of each picture, those of its newlines included.
    pub n: NonZeroUsize,
    /// How a picture that would take more is made to fit.
    pub by: Reduction,
}

/// How image tokens are made fewer. Positions in the prompt are always consecutive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Exactly [`ImageTokens::n`] are kept, in their order: features that the encoder looks at and that are like many of the
    /// others, which are merged into them. Each crop keeps a share in proportion to what it shows of the picture, and so do the
    /// newlines, which stand at even distances.
    #[default]
    Saliency,
    /// The grid of features is averaged to the largest grid of nearly the same proportions that fits. The overview of a tiled
    /// picture and its tiles get shares in proportion.
    Downsample,
}

impl Reduction {
    const ALL: [Reduction; 2] = [Reduction::Saliency, Reduction::Downsample];

    /// The name that it is parsed from.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Saliency => "saliency",
            Reduction::Downsample => "downsample",
        }
    }
}

impl FromStr for Reduction {
    type Err = Error;

    fn from_str(name: &str) -> Result<Reduction> {
        match Reduction::ALL.into_iter().find(|reduction| reduction.name() == name) {
            Some(reduction) => Ok(reduction),
            None => bail!(Usage, "image tokens by \"{name}\": expected saliency or downsample"),
        }
    }
}

/// The order of a picture's features: grids, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The grids.
    pub grids: Vec<Grid>,
}

/// A grid of features, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Newlines, at most one a row: at even distances, the last of them at the end.
    pub n_newline: usize,
    /// Which of the encoder's features they are: `[rows, cols]`.
    pub features: Vec<usize>,
}

/// What a place of the prompt holds: a row of features, or a newline.
pub type Place = Option<usize>;

impl Layout {
    /// Places that it takes.
    pub fn len(&self) -> usize {
        self.grids.iter().map(Grid::len).sum()
    }

    /// Whether it takes none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of its places, in terms of the encoder's features.
    pub fn places(&self) -> Vec<Place> {
        self.grids.iter().flat_map(|grid| grid.places(grid.n_newline, Some)).collect()
    }

    /// Makes the encoder's features `x: [n_crops, n_patch, width]` fewer by [`Reduction::Saliency`], so that they take `n` places:
    /// returns the rows that are left and the places in terms of them. `saliency: [n_crops, n_patch]`.
    ///
    /// # Panics
    /// If it takes fewer than `n` places as it is, or `n` is 0.
    pub fn keep_salient(
        &self,
        cx: &mut Cx<'_>,
        x: &[f32],
        width: usize,
        saliency: &[f32],
        n_patch: usize,
        n: usize,
    ) -> (Vec<f32>, Vec<Place>) {
        assert!((1..=self.len()).contains(&n), "{n} of {} places", self.len());
        let all_newlines: usize = self.grids.iter().map(|grid| grid.n_newline).sum();
        // In proportion; but a picture that ends with a newline goes on to do so, if there is room for more than that.
        let n_newline = (n * all_newlines / self.len()).max(1).min(all_newlines).min(n - 1);

        // Rows of one crop are compared with each other: attention does not tell how crops compare.
        let mut shown: Vec<usize> = self.grids.iter().flat_map(|grid| grid.features.iter().copied()).collect();
        shown.sort_unstable();
        let groups: Vec<&[usize]> =
            shown.chunk_by(|a, b| a / n_patch == b / n_patch).flat_map(|crop| crop.chunks(MAX_ROWS)).collect();
        let sizes: Vec<usize> = groups.iter().map(|group| group.len()).collect();

        let mut rows = Vec::with_capacity((n - n_newline) * width);
        let mut row_of = vec![None; saliency.len()];
        for (group, n) in groups.iter().zip(select::shares(n - n_newline, &sizes)).filter(|(_, n)| *n > 0) {
            let features: Vec<f32> = group.iter().flat_map(|i| &x[i * width..][..width]).copied().collect();
            let saliency: Vec<f32> = group.iter().map(|i| saliency[*i]).collect();
            let selection = select::select(cx, &features, width, &saliency, n);
            for (i, kept) in selection.kept.iter().enumerate() {
                row_of[group[*kept]] = Some(rows.len() / width + i);
            }
            rows.extend(selection.merge(&features, width));
        }
        let newlines = select::shares(n_newline, &self.grids.iter().map(|grid| grid.n_newline).collect::<Vec<_>>());
        let grids = self.grids.iter().zip(newlines);
        (rows, grids.flat_map(|(grid, n_newline)| grid.places(n_newline, |i| row_of[i])).collect())
    }

    /// Makes the encoder's features `x: [.., width]` fewer by [`Reduction::Downsample`], so that they take at most `n` places:
    /// returns the rows that are left and the places in terms of them.
    ///
    /// # Panics
    /// If it takes fewer than `n` places as it is, or `n` is 0.
    pub fn downsample(&self, x: &[f32], width: usize, n: usize) -> (Vec<f32>, Vec<Place>) {
        let mut shares = select::shares(n, &self.grids.iter().map(Grid::len).collect::<Vec<_>>());
        if shares[0] == 0 {
            // The overview comes before any detail.
            *shares.iter_mut().max().expect("there is a grid") -= 1;
            shares[0] = 1;
        }
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for (grid, n) in self.grids.iter().zip(shares) {
            let to = select::coarser(n, grid.rows, grid.cols, grid.n_newline);
            let Some(to) = to.or((places.is_empty() && n > 0).then_some((1, 1))) else { continue };
            let features: Vec<f32> = grid.features.iter().flat_map(|i| &x[i * width..][..width]).copied().collect();
            let first = rows.len() / width;
            rows.extend(select::pool(&features, (grid.rows, grid.cols), width, to));
            let n_newline = (to.0 * grid.n_newline).div_ceil(grid.rows).min(n - to.0 * to.1);
            let coarse = Grid { rows: to.0, cols: to.1, n_newline, features: (first..rows.len() / width).collect() };
            places.extend(coarse.places(n_newline, Some));
        }
        (rows, places)
    }
}

impl Grid {
    fn len(&self) -> usize {
        self.features.len() + self.n_newline
    }

    /// Its places with `n_newline` newlines and only the features that `of` gives a row for.
    fn places(&self, n_newline: usize, of: impl Fn(usize) -> Place) -> Vec<Place> {
        let mut places = Vec::new();
        for row in 0..self.rows {
            places.extend(self.features[row * self.cols..][..self.cols].iter().filter_map(|i| of(*i)).map(Some));
            let newlines = |rows: usize| rows * n_newline / self.rows;
            places.extend((newlines(row)..newlines(row + 1)).map(|_| None));
        }
        places
    }
}
