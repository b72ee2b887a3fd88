//! What a rank says of a call to the others: its terms, or the error with which it refuses.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::description::Line;
use super::terms::{OwnedTerms, Terms};
use crate::base::error::Result;
use crate::base::site::Site;
use crate::engine::communicator::Communicator;
use crate::environment::datatype::Datatype;

/// The kind of the tensor, and whether the call is recorded.
pub(crate) type Subject = Option<(Datatype, bool)>;

/// A rank's side of a call: its terms, or the error with which it refuses.
pub(super) struct Says<'s, 'a> {
    pub(super) site: Site,
    pub(super) comm: &'s Communicator,
    pub(super) subject: Subject,
    pub(super) terms: &'s Result<Terms<'a>>,
}

impl Says<'_, '_> {
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self.terms {
            Ok(terms) => {
                (self.site.call, self.site.backward).hash(&mut hasher);
                let subject = self.subject.map(|(datatype, r)| (datatype.scalar_type(), r));
                subject.hash(&mut hasher);
                terms.hash(&mut hasher);
            }
            // The rank makes a refusal differ from every other rank's fingerprint.
            Err(error) => ("refused", self.comm.rank(), error.to_string()).hash(&mut hasher),
        }
        hasher.finish()
    }

    pub(super) fn balance(&self) -> u64 {
        self.terms.as_ref().map_or(0, |terms| terms.balance(self.comm.rank()))
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        describe(self.site, self.subject, self.terms.as_ref().map_err(ToString::to_string))
    }
}

/// As [`Says`], owned, for a call that is under way.
pub(super) struct Said {
    pub(super) site: Site,
    pub(super) subject: Subject,
    pub(super) terms: std::result::Result<OwnedTerms, String>,
}

impl Said {
    pub(super) fn lines(&self) -> Vec<Line> {
        let terms = self.terms.as_ref().map(OwnedTerms::borrow);
        describe(self.site, self.subject, terms.as_ref().map_err(|error| (*error).clone()))
    }
}

/// The lines by which a rank describes its call to the others if their calls differ.
fn describe(site: Site, subject: Subject, terms: std::result::Result<&Terms, String>) -> Vec<Line> {
    match terms {
        Ok(terms) => terms.describe(site, subject),
        Err(error) => vec![("refused", error)],
    }
}
