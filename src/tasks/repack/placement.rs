//! Which expert goes to which rank: engines' linear placement, and an order of experts that evens out the load under it.
//!
//! Works on plain numbers; knows no file and no weight.

use std::cmp::Reverse;
use std::ops::Range;

use serde::Serialize;

/// Pairs of experts that are looked at for an exchange, per layer, after the first assignment: with 128 experts on 8 ranks enough for
/// some ten thousand exchanges, and a bound on the time that a layer of many thousand experts takes.
const PAIRS_MAX: usize = 20_000_000;

/// The positions that belong to rank `rank` of `ranks`: vLLM's linear placement (`layers/fused_moe/expert_map_manager.py` of
/// vLLM 0.32). The first ranks have one more where `ranks` does not divide `experts`.
pub(super) fn slots(experts: usize, ranks: usize, rank: usize) -> Range<usize> {
    let (each, more) = (experts / ranks, experts % ranks);
    let first = rank * each + rank.min(more);
    first..first + each + usize::from(rank < more)
}

/// The load of each rank if position `i` holds expert `order[i]`.
pub(super) fn loads_of_ranks(loads: &[u64], order: &[usize], ranks: usize) -> Vec<u64> {
    let load = |position: usize| loads[order[position]];
    (0..ranks).map(|rank| slots(order.len(), ranks, rank).map(load).fold(0, u64::saturating_add)).collect()
}

/// Largest load over mean load; 1 if there is no load.
pub(super) fn imbalance(loads: &[u64]) -> f64 {
    let sum: f64 = loads.iter().map(|&load| load as f64).sum();
    let largest = loads.iter().copied().max().unwrap_or(0) as f64;
    if sum == 0.0 { 1.0 } else { largest * loads.len() as f64 / sum }
}

/// An order of experts whose ranks have loads as even as can be found: the busiest experts first, each to the idlest rank with
/// room; then exchanges of two experts as long as they lower the larger load of the two ranks. Within a rank experts are in their own order.
pub(super) fn balanced(loads: &[u64], ranks: usize) -> Vec<usize> {
    let capacities: Vec<usize> = (0..ranks).map(|rank| slots(loads.len(), ranks, rank).len()).collect();
    let weights: Vec<(usize, f64)> = loads.iter().enumerate().map(|(expert, &load)| (expert, load as f64)).collect();
    let mut packed = pack(&weights, &capacities);
    exchange(&mut packed, |&expert| loads[expert]);
    packed.iter_mut().for_each(|rank| rank.sort_unstable());
    packed.concat()
}

/// Puts items into ranks with room for so many each.
fn pack(items: &[(usize, f64)], capacities: &[usize]) -> Vec<Vec<usize>> {
    let mut items = items.to_vec();
    items.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
    let mut ranks: Vec<(Vec<usize>, f64)> = capacities.iter().map(|_| (Vec::new(), 0.0)).collect();
    for (item, load) in items {
        let open = (0..ranks.len()).filter(|&rank| ranks[rank].0.len() < capacities[rank]);
        let idlest = open.min_by(|&a, &b| ranks[a].1.total_cmp(&ranks[b].1).then(a.cmp(&b)));
        let rank = &mut ranks[idlest.expect("there is room for every item")];
        rank.0.push(item);
        rank.1 += load;
    }
    ranks.into_iter().map(|(items, _)| items).collect()
}

/// Exchanges two items of the busiest rank and another one while that helps.
fn exchange(ranks: &mut [Vec<usize>], load: impl Fn(&usize) -> u64) {
    let sum = |rank: &Vec<usize>| rank.iter().map(&load).fold(0, u64::saturating_add);
    let mut looked_at = 0;
    while looked_at < PAIRS_MAX {
        looked_at += ranks.iter().map(Vec::len).sum::<usize>() * ranks.first().map_or(1, Vec::len);
        let sums: Vec<u64> = ranks.iter().map(sum).collect();
        let Some(busiest) = (0..ranks.len()).min_by_key(|&rank| (Reverse(sums[rank]), rank)) else { return };
        // The exchange that leaves the smaller of the larger loads; the first one among equals.
        let mut best: Option<(u64, usize, usize, usize)> = None;
        for rank in (0..ranks.len()).filter(|&rank| rank != busiest) {
            for (at, ours) in ranks[busiest].iter().enumerate() {
                for (other, theirs) in ranks[rank].iter().enumerate() {
                    let (down, up) = (load(ours), load(theirs));
                    if down <= up {
                        continue;
                    }
                    let larger = (sums[busiest] - (down - up)).max(sums[rank].saturating_add(down - up));
                    if larger < sums[busiest] && best.is_none_or(|(least, ..)| larger < least) {
                        best = Some((larger, at, rank, other));
                    }
                }
            }
        }
        let Some((_, at, rank, other)) = best else { return };
        let theirs = ranks[rank][other];
        ranks[rank][other] = std::mem::replace(&mut ranks[busiest][at], theirs);
    }
}

/// Copies of busy experts besides one of each: what vLLM's EPLB can load while it serves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Redundant {
    /// The expert at each physical place, rank by rank.
    pub physical_to_logical: Vec<usize>,
    /// Copies of each expert.
    pub copies: Vec<usize>,
    /// Largest load of a rank over the mean, if an expert's copies share its load.
    pub imbalance: f64,
}

/// Places `extra` more copies: each to the expert whose copies have most to do; then all copies to ranks. The places must divide by
/// `ranks`.
pub(super) fn redundant(loads: &[u64], ranks: usize, extra: usize) -> Redundant {
    let mut copies = vec![1_usize; loads.len()];
    let share = |expert: usize, copies: &[usize]| loads[expert] as f64 / copies[expert] as f64;
    for _ in 0..extra {
        let busiest = (0..loads.len()).max_by(|&a, &b| share(a, &copies).total_cmp(&share(b, &copies)).then(b.cmp(&a)));
        copies[busiest.expect("a layer has experts")] += 1;
    }
    let items: Vec<(usize, f64)> =
        copies.iter().enumerate().flat_map(|(expert, &count)| vec![(expert, share(expert, &copies)); count]).collect();
    let capacity = items.len() / ranks;
    let mut packed = pack(&items, &vec![capacity; ranks]);
    // Whole numbers, fine enough for loads that are shared by a few copies.
    exchange(&mut packed, |&expert| (share(expert, &copies) * 1024.0) as u64);
    packed.iter_mut().for_each(|rank| rank.sort_unstable());
    let sums: Vec<f64> = packed.iter().map(|rank| rank.iter().map(|&expert| share(expert, &copies)).sum()).collect();
    let total: f64 = sums.iter().sum();
    let largest = sums.iter().copied().fold(0.0, f64::max);
    let imbalance = if total == 0.0 { 1.0 } else { largest * ranks as f64 / total };
    Redundant { physical_to_logical: packed.concat(), copies, imbalance }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_positions_as_vllm_does() {
        // `determine_expert_map` of vLLM: `base = E // ep`, the first `E % ep` ranks have one more.
        let all = |experts, ranks| (0..ranks).map(|rank| slots(experts, ranks, rank)).collect::<Vec<_>>();
        assert_eq!(all(16, 8), [0..2, 2..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16]);
        assert_eq!(all(10, 4), [0..3, 3..6, 6..8, 8..10]);
        assert_eq!(slots(128, 8, 7), 112..128);
    }

    /// Every assignment of eight experts to two ranks of four: the best there is.
    #[test]
    fn a_small_layer_is_balanced_as_well_as_it_can_be() {
        for loads in [[9, 8, 7, 6, 5, 4, 3, 2], [100, 1, 1, 1, 1, 1, 1, 1], [50, 40, 30, 3, 2, 2, 1, 0]] {
            let total: u64 = loads.iter().sum();
            let sum = |set: u32| (0..8).filter(|i| set >> i & 1 == 1).map(|i| loads[i]).sum::<u64>();
            let sets = (0_u32..256).filter(|set| set.count_ones() == 4);
            let best = sets.map(|set| sum(set).max(total - sum(set))).min().unwrap();
            let order = balanced(&loads, 2);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..8).collect::<Vec<_>>());
            assert_eq!(loads_of_ranks(&loads, &order, 2).into_iter().max(), Some(best), "{loads:?}: {order:?}");
        }
    }

    #[test]
    fn ranks_keep_their_number_of_experts_and_are_never_busier_than_before() {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for (experts, ranks) in [(16, 8), (128, 8), (10, 4), (7, 3), (4, 4), (5, 1)] {
            // A few experts take most of the load, as they do in routing statistics.
            let loads: Vec<u64> = (0..experts).map(|_| random() % 1000 * (random() % 10) * (random() % 10)).collect();
            let order = balanced(&loads, ranks);
            assert_eq!((0..experts).filter(|expert| order.contains(expert)).count(), experts);
            let own: Vec<usize> = (0..experts).collect();
            let [before, after] = [&own, &order].map(|order| imbalance(&loads_of_ranks(&loads, order, ranks)));
            assert!(after <= before, "{experts} on {ranks}: {before} -> {after}");
        }
    }

    #[test]
    fn copies_go_to_the_busiest_experts() {
        let found = redundant(&[100, 10, 10, 10, 10, 10], 2, 2);
        assert_eq!(found.copies, [3, 1, 1, 1, 1, 1]);
        assert_eq!(found.physical_to_logical.len(), 8);
        // 150 tokens in all, four places on each rank: two of the three copies of a third of 100 share one with two others.
        assert!((found.imbalance - (200.0 / 3.0 + 20.0) / 75.0).abs() < 1e-9, "{}", found.imbalance);
    }
}
