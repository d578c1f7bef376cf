//! Which expert goes to which rank: engines' linear placement, and an order of experts that evens out the load under it.
//!
//! Works on plain numbers; knows no file and no weight.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
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
    pack(loads, &vec![1; loads.len()], &capacities).concat()
}

/// Puts so many copies of each expert on ranks with room for so many each: at most one copy for each rank, and as many copies as
/// there is room. `loads` are those of one copy.
fn pack(loads: &[u64], copies: &[usize], capacities: &[usize]) -> Vec<Vec<usize>> {
    let mut packing = Packing {
        loads,
        ranks: vec![Vec::new(); capacities.len()],
        holds: vec![vec![false; loads.len()]; capacities.len()],
        sums: vec![0; capacities.len()],
    };
    let mut busiest: Vec<usize> = (0..loads.len()).collect();
    busiest.sort_by_key(|&expert| (Reverse(loads[expert]), expert));
    for expert in busiest {
        for _ in 0..copies[expert] {
            packing.put(expert, capacities);
        }
    }
    packing.exchange();
    packing.ranks.iter_mut().for_each(|rank| rank.sort_unstable());
    packing.ranks
}

/// Experts on ranks. No rank has one twice: a second copy would take memory and no load off any other rank.
struct Packing<'a> {
    /// Load of one copy of each expert.
    loads: &'a [u64],
    /// The experts of each rank.
    ranks: Vec<Vec<usize>>,
    /// The same the other way round: whether a rank has an expert.
    holds: Vec<Vec<bool>>,
    /// Load of each rank.
    sums: Vec<u64>,
}

impl Packing<'_> {
    /// Adds an expert to the idlest rank that has room for it and does not have it.
    fn put(&mut self, expert: usize, capacities: &[usize]) {
        let has_room = |rank: &usize| self.ranks[*rank].len() < capacities[*rank];
        let load = |rank: &usize| (self.sums[*rank], *rank);
        let open = || (0..self.ranks.len()).filter(has_room);
        let rank = match open().filter(|&rank| !self.holds[rank][expert]).min_by_key(load) {
            Some(rank) => rank,
            None => {
                let open = open().min_by_key(load).expect("there is room for every copy");
                self.make_room(expert, open)
            }
        };
        self.add(rank, expert);
    }

    fn add(&mut self, rank: usize, expert: usize) {
        self.ranks[rank].push(expert);
        self.holds[rank][expert] = true;
        self.sums[rank] = self.sums[rank].saturating_add(self.loads[expert]);
    }

    fn remove(&mut self, rank: usize, at: usize) -> usize {
        let expert = self.ranks[rank].swap_remove(at);
        self.holds[rank][expert] = false;
        // Not a difference: sums of absurd loads are saturated.
        self.sums[rank] = self.ranks[rank].iter().map(|&expert| self.loads[expert]).fold(0, u64::saturating_add);
        expert
    }

    /// Moves an expert from a full rank that does not have `expert` to `open`, which has it, and says which rank has room now. There
    /// is such a rank, as an expert has no more copies than there are ranks; and if ranks have room for equally many, it has an
    /// expert that `open` has not, as it has more of them.
    fn make_room(&mut self, expert: usize, open: usize) -> usize {
        let Self { loads, ref sums, .. } = *self;
        let mut best: Option<(u64, usize, usize)> = None;
        for rank in (0..self.ranks.len()).filter(|&rank| !self.holds[rank][expert]) {
            for (at, &moved) in self.ranks[rank].iter().enumerate().filter(|(_, moved)| !self.holds[open][**moved]) {
                let left = (sums[rank] - loads[moved]).saturating_add(loads[expert]);
                let larger = sums[open].saturating_add(loads[moved]).max(left);
                if best.is_none_or(|(least, ..)| larger < least) {
                    best = Some((larger, rank, at));
                }
            }
        }
        let (_, rank, at) = best.expect("a full rank has an expert that one with room has not");
        let moved = self.remove(rank, at);
        self.add(open, moved);
        rank
    }

    /// Exchanges two experts of the busiest rank and another one while that helps.
    fn exchange(&mut self) {
        let mut looked_at = 0;
        while looked_at < PAIRS_MAX {
            looked_at += self.ranks.iter().map(Vec::len).sum::<usize>() * self.ranks.first().map_or(1, Vec::len);
            let sums = &self.sums;
            let Some(busiest) = (0..sums.len()).min_by_key(|&rank| (Reverse(sums[rank]), rank)) else { return };
            // The exchange that leaves the smaller of the larger loads; the first one among equals.
            let mut best: Option<(u64, usize, usize, usize)> = None;
            for rank in (0..sums.len()).filter(|&rank| rank != busiest) {
                let theirs = self.movable(rank, busiest);
                for (at, down) in self.movable(busiest, rank) {
                    for &(other, up) in theirs.iter().filter(|(_, up)| *up < down) {
                        let larger = (sums[busiest] - (down - up)).max(sums[rank].saturating_add(down - up));
                        if larger < sums[busiest] && best.is_none_or(|(least, ..)| larger < least) {
                            best = Some((larger, at, rank, other));
                        }
                    }
                }
            }
            let Some((_, at, rank, other)) = best else { return };
            let (ours, theirs) = (self.remove(busiest, at), self.remove(rank, other));
            self.add(busiest, theirs);
            self.add(rank, ours);
        }
    }

    /// Experts of rank `from` that rank `to` does not have: where they stand, and their load.
    fn movable(&self, from: usize, to: usize) -> Vec<(usize, u64)> {
        let experts = self.ranks[from].iter().enumerate().filter(|(_, expert)| !self.holds[to][**expert]);
        experts.map(|(at, &expert)| (at, self.loads[expert])).collect()
    }
}

/// Copies of busy experts besides one of each: what vLLM's EPLB can load while it serves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Redundant {
    /// The expert at each physical place, rank by rank, by the output's numbers: those are all that an engine knows.
    pub physical_to_logical: Vec<usize>,
    /// Copies of each expert, by the same numbers.
    pub copies: Vec<usize>,
    /// Largest load of a rank over the mean, if an expert's copies share its load.
    pub imbalance: f64,
}

impl Redundant {
    /// The same for an output that calls expert `order[i]` `i`. Within a rank experts are in the order of their numbers again.
    pub(super) fn renumber(&mut self, order: &[usize], ranks: usize) {
        let mut position = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &expert)| position[expert] = at);
        self.copies = order.iter().map(|&expert| self.copies[expert]).collect();
        self.physical_to_logical.iter_mut().for_each(|expert| *expert = position[*expert]);
        let each = self.physical_to_logical.len() / ranks;
        self.physical_to_logical.chunks_mut(each).for_each(<[usize]>::sort_unstable);
    }

    /// The experts whose copies rank `rank` of `ranks` has.
    pub(super) fn on_rank(&self, ranks: usize, rank: usize) -> &[usize] {
        let each = self.physical_to_logical.len() / ranks;
        &self.physical_to_logical[rank * each..][..each]
    }
}

/// The most copies besides one of each expert that are of use: then every rank has every expert.
pub(super) fn redundant_max(experts: usize, ranks: usize) -> usize {
    experts.saturating_mul(ranks.saturating_sub(1))
}

/// Places `extra` more copies, at most [`redundant_max`], by the numbers that `loads` have; no rank has an expert twice. The places
/// must divide by `ranks`.
pub(super) fn redundant(loads: &[u64], ranks: usize, extra: usize) -> Redundant {
    let copies = copies(loads, ranks, extra);
    let share = |expert: usize| loads[expert] as f64 / copies[expert] as f64;
    // Whole numbers, fine enough for loads that are shared by a few copies.
    let shares: Vec<u64> = (0..loads.len()).map(|expert| (share(expert) * 1024.0) as u64).collect();
    let capacity = copies.iter().sum::<usize>() / ranks;
    let packed = pack(&shares, &copies, &vec![capacity; ranks]);
    let sums: Vec<f64> = packed.iter().map(|rank| rank.iter().map(|&expert| share(expert)).sum()).collect();
    let total: f64 = sums.iter().sum();
    let largest = sums.iter().copied().fold(0.0, f64::max);
    let imbalance = if total == 0.0 { 1.0 } else { largest * ranks as f64 / total };
    Redundant { physical_to_logical: packed.concat(), copies, imbalance }
}

/// How many copies each expert has: each of `extra` goes to the expert whose copies have most to do, unless all ranks have it.
fn copies(loads: &[u64], ranks: usize, extra: usize) -> Vec<usize> {
    let mut copies = vec![1_usize; loads.len()];
    // Numbers that are not negative are in the order of their bits. Among equals the expert with fewer copies, then the first one.
    let entry = |expert: usize, count: usize| {
        let share = loads[expert] as f64 / count as f64;
        (share.to_bits(), Reverse(count), Reverse(expert))
    };
    let mut busiest: BinaryHeap<_> = (0..loads.len()).map(|expert| entry(expert, 1)).collect();
    for _ in 0..extra {
        let Some((_, Reverse(count), Reverse(expert))) = busiest.pop() else { break };
        copies[expert] = count + 1;
        if count + 1 < ranks {
            busiest.push(entry(expert, count + 1));
        }
    }
    copies
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
        let loads = [100, 10, 10, 10, 10, 10];
        // Two places on each of four ranks: three have a third of 100 and another expert, the fourth has the two that are left.
        let found = redundant(&loads, 4, 2);
        assert_eq!(found.copies, [3, 1, 1, 1, 1, 1]);
        assert_eq!(found.physical_to_logical.len(), 8);
        assert!((found.imbalance - (100.0 / 3.0 + 10.0) / 37.5).abs() < 1e-9, "{}", found.imbalance);
        // Two ranks have no use for a third copy, so the next expert gets one.
        let found = redundant(&loads, 2, 2);
        assert_eq!(found.copies, [2, 2, 1, 1, 1, 1]);
        assert!((found.imbalance - 1.0).abs() < 1e-9, "{}", found.imbalance);
    }

    /// Loads of so many experts, from none at all to all of it on one.
    fn spreads(experts: usize) -> Vec<Vec<u64>> {
        let of = |load: fn(usize) -> u64| (0..experts).map(load).collect();
        vec![
            of(|_| 0),
            of(|_| 17),
            of(|expert| if expert == 2 { u64::MAX } else { 0 }),
            of(|expert| u64::MAX >> expert.min(63)),
            of(|expert| 1_000_000_000 >> expert.min(40)),
            of(|expert| if expert < 3 { 1_000_000 } else { 1 }),
            of(|expert| (expert * 7919 % 1009 * (expert % 5) * (expert % 7)) as u64),
        ]
    }

    #[test]
    fn no_rank_has_an_expert_twice_however_many_copies_there_are() {
        for (experts, ranks) in [(16, 4), (16, 8), (128, 8), (10, 4), (12, 5), (7, 7), (5, 2), (3, 3)] {
            let most = redundant_max(experts, ranks);
            assert_eq!(experts + most, experts * ranks);
            for extra in (1..=most).filter(|extra| (experts + extra).is_multiple_of(ranks)) {
                for (spread, loads) in spreads(experts).iter().enumerate() {
                    let what = format!("{experts} experts, {ranks} ranks, {extra} copies, spread {spread}");
                    let found = redundant(loads, ranks, extra);
                    assert_eq!(found.physical_to_logical.len(), experts + extra, "{what}");
                    let mut copies = vec![0; experts];
                    for rank in 0..ranks {
                        let there = found.on_rank(ranks, rank);
                        assert_eq!(there.len(), (experts + extra) / ranks, "{what}");
                        assert!(there.windows(2).all(|pair| pair[0] < pair[1]), "{what}: {there:?}");
                        there.iter().for_each(|&expert| copies[expert] += 1);
                    }
                    assert_eq!(copies, found.copies, "{what}");
                    assert!(copies.iter().all(|&count| count > 0), "{what}: {copies:?}");
                }
            }
        }
    }

    #[test]
    fn copies_follow_the_numbers_of_the_output() {
        let mut found =
            Redundant { physical_to_logical: vec![0, 1, 3, 0, 2, 3], copies: vec![2, 1, 1, 2], imbalance: 1.5 };
        // The output calls 3 what was 2, 2 what was 0, 0 what was 3.
        found.renumber(&[3, 1, 0, 2], 2);
        assert_eq!(found.physical_to_logical, [0, 1, 2, 0, 2, 3]);
        assert_eq!(found.copies, [2, 1, 2, 1]);
        assert_eq!(found.on_rank(2, 1), [0, 2, 3]);
    }
}
