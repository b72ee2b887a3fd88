//! Descriptions of calls, line by line: their encoding as messages, and the differences between
//! them.

use std::borrow::Cow;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::texts::LONGEST;
use crate::base::rank::Rank;

/// A name and its value.
pub(super) type Line = (&'static str, String);

/// The line where a rank made the call. It is always told, and need not be equal.
pub(super) const AT: &str = "at";

/// The last call that had the same terms on all ranks but different source lines. It is always
/// told, as the ranks may have diverged there.
pub(super) const LAST: &str = "their lines last differed before, in";

/// What a rank sends to others and receives from them. It differs between ranks in any case, so it is
/// told only if what is sent is not what is received.
pub(super) const ONE_SIDED: [&str; 6] = [
    "counts to send",
    "counts to receive",
    "blocks to send",
    "blocks to receive",
    "destinations",
    "sources",
];

/// How many collective calls the rank has made on the communicator before.
pub(super) const PLACE: &str = "calls before it on this communicator";

/// The description as a message, with long values cut so that it fits.
pub(super) fn encode(description: &[Line]) -> Vec<u8> {
    let mut longest = LONGEST / 4;
    loop {
        let lines: Vec<(&str, Cow<str>)> =
            description.iter().map(|(name, value)| (*name, shortened(value, longest))).collect();
        // Encoding fails only for types that the format cannot hold; it can hold pairs of texts.
        let bytes = postcard::to_stdvec(&lines).unwrap_or_default();
        if bytes.len() <= LONGEST || longest == 0 {
            return bytes;
        }
        longest /= 2;
    }
}

/// The value, or its first bytes and a hash, by which long values can be told apart.
fn shortened(value: &str, longest: usize) -> Cow<'_, str> {
    if value.len() <= longest {
        return value.into();
    }
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let mut end = longest;
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… (hash {:08x})", &value[..end], hasher.finish() >> 32).into()
}

/// The description in a message; empty if the message is not one.
pub(super) fn decode(bytes: &[u8]) -> Vec<(String, String)> {
    postcard::from_bytes(bytes).unwrap_or_default()
}

fn value_of<'a>(lines: &'a [(String, String)], name: &str) -> Option<&'a str> {
    lines.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

/// Text such as "kind: Float on ranks 0, 2; Double on rank 1" for each name that has several
/// values, and the lines where the ranks made the call. `all` has the description of each of the
/// `ranks`.
pub(crate) fn differences(all: &[Vec<(String, String)>], ranks: &[Rank]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in all.iter().flatten() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    // Differing values come first, source lines last.
    names.sort_by_key(|&name| (name == LAST, name == AT));
    let mut operations = all.iter().filter_map(|lines| value_of(lines, "operation"));
    let first = operations.next();
    let several = operations.any(|operation| Some(operation) != first);
    let mut text = String::new();
    for name in names {
        let mut values: Vec<(&str, Vec<Rank>)> = Vec::new();
        for (&rank, lines) in ranks.iter().zip(all) {
            // A missing value is not a difference if it is explained otherwise: a rank that refused
            // has no terms, a rank with terms has no refusal, and operations have different terms.
            let refused = name == "refused" || value_of(lines, "refused").is_some();
            let value = match value_of(lines, name) {
                Some(value) => value,
                None if refused || several => continue,
                None => "none",
            };
            match values.iter_mut().find(|(v, _)| *v == value) {
                Some((_, ranks)) => ranks.push(rank),
                None => values.push((value, vec![rank])),
            }
        }
        if values.len() < 2 && !["refused", AT, LAST].contains(&name) {
            continue;
        }
        let values: Vec<String> = values
            .iter()
            .map(|(value, ranks)| {
                if ranks.len() == all.len() && ranks.len() > 1 {
                    return format!("{value} on all ranks");
                }
                let list: Vec<String> = ranks.iter().map(ToString::to_string).collect();
                let noun = if list.len() == 1 { "rank" } else { "ranks" };
                format!("{value} on {noun} {}", list.join(", "))
            })
            .collect();
        let _ = write!(text, "\n  {name}: {}", values.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::op::Op;
    use crate::base::site::Site;
    use crate::engine::agreement::Terms;
    use crate::environment::datatype::Datatype;

    #[test]
    fn differences_name_the_ranks() {
        let terms = |op: &str, kind: &str| {
            vec![("op".to_owned(), op.to_owned()), ("kind".to_owned(), kind.to_owned())]
        };
        let all = [terms("Sum", "Float"), terms("Sum", "Double"), terms("Sum", "Float")];
        assert_eq!(
            differences(&all, &[0, 1, 2]),
            "\n  kind: Float on ranks 0, 2; Double on rank 1"
        );
        let refused = vec![("refused".to_owned(), "reduce: no".to_owned())];
        let all = [terms("Sum", "Float"), refused];
        assert_eq!(differences(&all, &[0, 1]), "\n  refused: reduce: no on rank 1");
    }

    #[test]
    fn descriptions_survive_the_journey() {
        let terms = Terms {
            op: Some(Op::Max),
            root: Some(2),
            axes: [Some(1), None],
            shape: Some((&[2, 3], Some(1))),
            ..Terms::default()
        };
        let description = terms.describe(Site::new("reduce"), Datatype::of(6).map(|d| (d, true)));
        let back = decode(&encode(&description));
        let expected = [
            ("operation", "reduce"),
            ("pass", "forward"),
            ("op", "Op::Max"),
            ("kind", "Float"),
            ("requires_grad", "true"),
            ("root", "2"),
            ("axis", "1"),
            ("shape", "[2, _]"),
        ];
        assert_eq!(back.len(), expected.len());
        for ((name, value), expected) in back.iter().zip(expected) {
            assert_eq!((name.as_str(), value.as_str()), expected);
        }
    }
}
