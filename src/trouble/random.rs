//! Faults by chance: the same seed makes the same script.

use std::time::Duration;

use super::script::{Action, Channel, Place, Position, Rule, Script, Spot};
use crate::wire::MessageKind;

/// A script of one to three faults, which `seed` chooses. Places are such that most migrations have them.
pub fn random(seed: u64) -> Script {
    let mut dice = Dice(seed);
    let rules = (0..=dice.below(3)).map(|_| rule(&mut dice)).collect();
    Script { rules }
}

fn rule(dice: &mut Dice) -> Rule {
    let channel = if dice.below(3) == 0 { Channel::Multifd(dice.below(2) as u8) } else { Channel::Main };
    let place = match (channel, dice.below(3)) {
        (channel, 0) => {
            let place = Place::Byte(dice.below(200_000));
            return on(dice, place, Some(channel), true);
        }
        (Channel::Multifd(_), 1) => Place::Sync(dice.below(3)),
        (Channel::Multifd(_), _) => Place::Packet(dice.below(20)),
        (_, 1) => Place::Eos(dice.below(3)),
        _ => Place::Page(dice.below(500)),
    };
    if dice.below(10) == 0 {
        return on(dice, Place::Message(MessageKind::PONG, 0), None, false);
    }
    on(dice, place, Some(channel), false)
}

fn on(dice: &mut Dice, place: Place, channel: Option<Channel>, is_byte: bool) -> Rule {
    let position = [Position::At, Position::In, Position::After][dice.below(3) as usize];
    let action = match dice.below(8) {
        0 => Action::Cut,
        1 => Action::Reset,
        2 => Action::HalfClose,
        3 => Action::Stall(Some(Duration::from_millis(100 * (1 + dice.below(20))))),
        4 => Action::Drop,
        5 => Action::Duplicate,
        6 => Action::Trickle(1 + dice.below(4096)),
        _ if is_byte => Action::Flip(dice.below(8) as u32, None),
        _ => {
            let fields = place.fields();
            let field = fields[dice.below(fields.len() as u64) as usize];
            Action::Flip(dice.below(8) as u32, Some(field.to_owned()))
        }
    };
    let is_record = matches!(action, Action::Drop | Action::Duplicate | Action::Flip(..));
    let position = if is_record { Position::At } else { position };
    Rule { action, spot: Some(Spot { position, place, channel }) }
}

/// splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_makes_a_script_that_can_be_written_down() {
        for seed in 0..2000 {
            let script = random(seed);
            assert!((1..=3).contains(&script.rules.len()));
            assert_eq!(script.to_string().parse::<Script>().unwrap(), script, "{script}");
        }
        assert_ne!(random(1), random(2));
    }
}
