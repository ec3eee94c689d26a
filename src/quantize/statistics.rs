//! What an importance matrix says about each tensor, in the measures of `llama-imatrix --show-statistics`.

use super::imatrix::{Entry, Imatrix};

/// Squares below this count for nothing.
const ACTIVE: f64 = 1e-5;

/// Measures of the mean squared inputs of one tensor, over its columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Which block it belongs to: `0` for `blk.0.attn_q.weight`, `v.0` for `v.blk.0.attn_q.weight`, `-` for none.
    pub layer: String,
    /// Its name within the block, without `.weight`.
    pub tensor: String,
    /// Columns.
    pub n: usize,
    /// The sum.
    pub total: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub deviation: f64,
    /// Fraction of the columns whose mean square is above 1e-5.
    pub active: f64,
    /// Entropy of the columns' shares of the sum, in bits.
    pub entropy: f64,
    /// Fraction of the columns that are more than a standard deviation above the mean.
    pub outliers: f64,
    /// Cosine of the angle to the same tensor's columns in the block before; 0 for the first block.
    pub similarity: f64,
}

/// Means over the tensors of a block, weighted by their numbers of columns.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    /// As [`Statistics::layer`].
    pub layer: String,
    /// Of [`Statistics::total`].
    pub total: f64,
    /// Of [`Statistics::outliers`].
    pub outliers: f64,
    /// Of [`Statistics::similarity`].
    pub similarity: f64,
}

impl Imatrix {
    /// Measures of each tensor that was seen, block by block.
    pub fn statistics(&self) -> Vec<Statistics> {
        let mut all: Vec<_> = self.entries().filter_map(|(name, entry)| self.measure(name, entry)).collect();
        all.sort_by_cached_key(|(place, s)| (place.clone(), s.tensor.clone()));
        all.into_iter().map(|(_, statistics)| statistics).collect()
    }

    /// The place among the blocks, and the measures.
    fn measure(&self, name: &str, entry: &Entry) -> Option<((String, u64), Statistics)> {
        let means: Vec<f64> = entry.seen().collect();
        if means.is_empty() {
            return None;
        }
        let n = means.len() as f64;
        let total: f64 = means.iter().sum();
        let mean = total / n;
        let deviation = (means.iter().map(|x| x * x).sum::<f64>() / n - mean * mean).max(0.0).sqrt();
        let count = |holds: &dyn Fn(f64) -> bool| means.iter().filter(|x| holds(**x)).count() as f64 / n;
        let shares = means.iter().map(|x| x / total).filter(|p| *p > 0.0);
        let entropy = if total > 0.0 { -shares.map(|p| p * p.log2()).sum::<f64>() } else { 0.0 };
        let block = Block::of(name);
        let before = block.as_ref().and_then(|block| self.entry(&block.before()?));
        let (layer, tensor, place) = match &block {
            Some(block) => {
                (format!("{}{}", block.prefix, block.number), block.rest, (block.prefix.to_owned(), block.number))
            }
            None => ("-".to_owned(), name, ("~".to_owned(), 0)),
        };
        let statistics = Statistics {
            layer,
            tensor: tensor.strip_suffix(".weight").unwrap_or(tensor).to_owned(),
            n: means.len(),
            total,
            min: means.iter().copied().fold(f64::INFINITY, f64::min),
            max: means.iter().copied().fold(0.0, f64::max),
            mean,
            deviation,
            active: count(&|x| x > ACTIVE),
            entropy,
            outliers: if deviation > 0.0 { count(&|x| x - mean > deviation) } else { 0.0 },
            similarity: before.map_or(0.0, |before| cosine(before.sums(), entry.sums())),
        };
        Some((place, statistics))
    }
}

impl LayerStatistics {
    /// Of each block in `all`, in order; tensors outside blocks are left out.
    pub fn of(all: &[Statistics]) -> Vec<LayerStatistics> {
        let blocks = all.chunk_by(|a, b| a.layer == b.layer).filter(|block| block[0].layer != "-");
        let layer = |block: &[Statistics]| {
            let n: f64 = block.iter().map(|s| s.n as f64).sum();
            let mean = |of: fn(&Statistics) -> f64| block.iter().map(|s| s.n as f64 * of(s)).sum::<f64>() / n;
            LayerStatistics {
                layer: block[0].layer.clone(),
                total: mean(|s| s.total),
                outliers: mean(|s| s.outliers),
                similarity: mean(|s| s.similarity),
            }
        };
        blocks.map(layer).collect()
    }
}

/// A name of the form `{prefix}blk.{number}.{rest}`.
struct Block<'a> {
    prefix: &'a str,
    number: u64,
    rest: &'a str,
}

impl<'a> Block<'a> {
    fn of(name: &'a str) -> Option<Block<'a>> {
        let (prefix, rest) = name.split_once("blk.")?;
        let (number, rest) = rest.split_once('.')?;
        Some(Block { prefix, number: number.parse().ok()?, rest })
    }

    /// The name of the same tensor in the block before.
    fn before(&self) -> Option<String> {
        Some(format!("{}blk.{}.{}", self.prefix, self.number.checked_sub(1)?, self.rest))
    }
}

/// The cosine of the angle between two vectors; 0 if one is zero, or they are of different lengths.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let size = dot(a, a).sqrt() * dot(b, b).sqrt();
    if a.len() == b.len() && size > 0.0 { dot(a, b) / size } else { 0.0 }
}
