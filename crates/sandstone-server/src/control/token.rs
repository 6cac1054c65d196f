//! API tokens: `ddo_` and 40 random characters. The official SDKs take that prefix as "speaks for
//! an organisation" and then ask for no organisation name.

use std::fmt;

use sandstone_api::{ID_ALPHABET, IdSuffix, Slug};
use sandstone_core::{Clock, Entropy};
use sandstone_store::{OrganisationId, Store, StoreError, TokenHash};

const PREFIX: &str = "ddo_";
const RANDOM_CHARS: usize = 40;

/// A secret that speaks for an organisation. It does not show itself in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A new one, with about 200 bits of entropy.
    #[must_use]
    pub fn generate(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; RANDOM_CHARS];
        entropy.fill(&mut bytes);
        let random = bytes.map(|byte| ID_ALPHABET[usize::from(byte) % ID_ALPHABET.len()]);
        Self(random.iter().fold(PREFIX.to_owned(), |mut text, byte| {
            text.push(char::from(*byte));
            text
        }))
    }

    /// One that the operator chose: `ddo_` and at least 16 printable ASCII characters without
    /// spaces, at most 512 in all.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let random = text.strip_prefix(PREFIX)?;
        let fits = random.len() >= 16 && text.len() <= super::TOKEN_MAX_BYTES;
        (fits && random.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Lets `token` speak for the organisation, which is made when there is none of that name.
/// Repeating it changes nothing, so it can be done at every start. Keep a generated token
/// somewhere safe first: only its hash is stored.
///
/// # Errors
/// [`StoreError::TokenTaken`] when the token speaks for another organisation.
pub async fn admit(
    store: &Store,
    clock: &dyn Clock,
    entropy: &dyn Entropy,
    organisation: &Slug,
    token: &Token,
) -> Result<(), StoreError> {
    let mut bytes = [0; sandstone_api::ID_RANDOM_CHARS];
    entropy.fill(&mut bytes);
    let candidate = OrganisationId::new(IdSuffix::from_random(bytes));
    let now = clock.now();
    let organisation = store
        .ensure_organisation(candidate, organisation, now)
        .await?;
    store
        .add_token(organisation, &TokenHash::of(token.reveal()), now)
        .await
}
