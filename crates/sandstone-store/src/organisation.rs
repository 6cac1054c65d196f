//! Organisations and the tokens that speak for them.

use std::fmt;
use std::str::FromStr;

use sandstone_api::{IdSuffix, ParseIdError, Slug};
use sandstone_core::Timestamp;
use sha2::{Digest, Sha256};

use crate::error::Step;
use crate::row::Columns;
use crate::store::commit;
use crate::{Store, StoreError};

/// An organisation: `org_<20>`. Everything belongs to one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrganisationId(IdSuffix);

impl OrganisationId {
    /// An identifier with this random part.
    #[must_use]
    pub fn new(suffix: IdSuffix) -> Self {
        Self(suffix)
    }
}

impl fmt::Display for OrganisationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "org_{}", self.0.as_str())
    }
}

impl fmt::Debug for OrganisationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OrganisationId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        text.strip_prefix("org_")
            .ok_or(ParseIdError)?
            .parse()
            .map(Self)
    }
}

/// The SHA-256 of a token. A token has over 100 bits of entropy, so a plain hash is enough: there
/// is nothing to guess, and looking it up by equality tells an attacker nothing about others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHash(String);

impl TokenHash {
    /// Hashes a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        let digest = Sha256::digest(token.as_bytes());
        Self(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Store {
    /// The organisation with this slug; made with the id `candidate` when there is none.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn ensure_organisation(
        &self,
        candidate: OrganisationId,
        slug: &Slug,
        now: Timestamp,
    ) -> Result<OrganisationId, StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO organisations (id, slug, created_at) VALUES ($1, $2, $3) \
             ON CONFLICT (slug) DO NOTHING",
        )
        .bind(candidate.to_string())
        .bind(slug.as_str())
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("add an organisation")?;
        let row = sqlx::query("SELECT id FROM organisations WHERE slug = $1")
            .bind(slug.as_str())
            .fetch_one(&mut *transaction)
            .await
            .step("read an organisation")?;
        let id = Columns(&row).parsed("id")?;
        commit(transaction).await?;
        Ok(id)
    }

    /// Lets the token speak for the organisation. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::TokenTaken`] when it speaks for another one.
    pub async fn add_token(
        &self,
        organisation: OrganisationId,
        token: &TokenHash,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query(
            "INSERT INTO tokens (sha256, organisation, created_at) VALUES ($1, $2, $3) \
             ON CONFLICT (sha256) DO NOTHING",
        )
        .bind(&token.0)
        .bind(organisation.to_string())
        .bind(now.as_millis())
        .execute(&mut *transaction)
        .await
        .step("add a token")?;
        let row = sqlx::query("SELECT organisation FROM tokens WHERE sha256 = $1")
            .bind(&token.0)
            .fetch_one(&mut *transaction)
            .await
            .step("read a token")?;
        if Columns(&row).parsed::<OrganisationId>("organisation")? != organisation {
            return Err(StoreError::TokenTaken);
        }
        commit(transaction).await
    }

    /// Whom the token speaks for, if anyone.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn organisation_of_token(
        &self,
        token: &TokenHash,
    ) -> Result<Option<OrganisationId>, StoreError> {
        sqlx::query("SELECT organisation FROM tokens WHERE sha256 = $1")
            .bind(&token.0)
            .fetch_optional(self.read())
            .await
            .step("read a token")?
            .map(|row| Columns(&row).parsed("organisation"))
            .transpose()
    }
}
