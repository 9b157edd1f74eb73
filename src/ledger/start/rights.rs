//! The rights that the role lacks, each with the GRANT that gives it.
//!
//! `gapless check` and each start check them. Without the check, a start would fail in the middle of a batch.

use std::fmt;

use super::schema::MigrateError;
use crate::ledger::connect::LedgerReader;
use crate::ledger::error::LedgerError;

/// A right that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRight {
    /// Quoted as an SQL identifier where necessary, like `object`.
    pub role: String,
    pub right: String,
    pub object: String,
    pub whose: RightsOf,
}

/// Why the role needs the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RightsOf {
    /// The daemon writes as this role.
    Ours,
    /// The daemon does not need the right; a verb may need it.
    OfVerbs,
    /// PostgreSQL checks foreign keys as the role that owns the tables.
    Owner,
}

impl MissingRight {
    /// The SQL that gives the right.
    pub fn grant(&self) -> String {
        format!("grant {} on {} to {}", self.right, self.object, self.role)
    }
}

/// Merges equal rights of one role on several tables into one entry, which needs one GRANT.
pub fn merged(missing: &[MissingRight]) -> Vec<MissingRight> {
    let mut merged: Vec<MissingRight> = Vec::new();
    for one in missing {
        let is_alike = |other: &&mut MissingRight| {
            other.object.starts_with("gapless.")
                && (&other.role, &other.right, other.whose) == (&one.role, &one.right, one.whose)
        };
        match merged.iter_mut().find(is_alike).filter(|_| one.object.starts_with("gapless.")) {
            Some(other) => other.object = format!("{}, {}", other.object, one.object),
            None => merged.push(one.clone()),
        }
    }
    merged
}

impl fmt::Display for MissingRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, right, object, whose } = self;
        match whose {
            RightsOf::Ours => write!(f, "role {role} has no right to {right} on {object}"),
            RightsOf::OfVerbs => write!(f, "role {role} has no right to {right} on {object}, which a verb may need"),
            RightsOf::Owner => write!(
                f,
                "role {role} owns gapless's tables and has no right to {right} on {object}: foreign keys are checked as the owner"
            ),
        }
    }
}

/// The rights that the daemon needs on each table. A table that is not listed needs the documented rights.
const REQUIRED_RIGHTS: &str = "ledger SELECT,INSERT,UPDATE
sources SELECT,INSERT,UPDATE
writers SELECT,INSERT
start_orders SELECT,INSERT,UPDATE
positions SELECT,INSERT,UPDATE
stored_events SELECT,INSERT,UPDATE
outcomes SELECT,INSERT,UPDATE
conflicting_events SELECT,INSERT,UPDATE
rejected_messages SELECT,INSERT,UPDATE
gaps SELECT,INSERT,UPDATE,DELETE
late_offsets SELECT,INSERT
log_ends SELECT,INSERT,UPDATE
format_history SELECT,INSERT,UPDATE
recorded_states SELECT,INSERT,UPDATE,DELETE
audits SELECT,INSERT,UPDATE
refinery_schema_history SELECT";

/// Uses oids, because PostgreSQL resolves names only with USAGE on the schema.
const MISSING: &str = "-- missing_rights
with uses as (
    select split_part(line, ' ', 1) as relname, string_to_array(split_part(line, ' ', 2), ',') as rights
    from unnest(string_to_array($1, E'\\n')) as line
), schema as (
    select oid, nspname from pg_catalog.pg_namespace where nspname = 'gapless'
), tables as (
    select c.oid, c.relname, c.relowner from pg_catalog.pg_class c join schema s on s.oid = c.relnamespace
    where c.relkind in ('r', 'p')
), needed as (
    select 0 as rank, 'schema gapless' as object, 'USAGE' as privilege,
           pg_catalog.has_schema_privilege(current_user, s.oid, 'USAGE') as has, true as ours
    from schema s
    union all
    select 1, 'gapless.' || quote_ident(t.relname), p.privilege,
           pg_catalog.has_table_privilege(current_user, t.oid, p.privilege), u.relname is not null
    from tables t left join uses u on u.relname = t.relname
    cross join lateral unnest(coalesce(u.rights, '{SELECT,INSERT,UPDATE,DELETE}')) as p(privilege)
    union all
    select 2, 'sequence gapless.' || quote_ident(c.relname), 'USAGE',
           pg_catalog.has_sequence_privilege(current_user, c.oid, 'USAGE'), true
    from pg_catalog.pg_class c join schema s on s.oid = c.relnamespace
    where c.relkind = 'S' and not exists (
        select from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'i')
    union all
    select 3, 'function ' || p.oid::regprocedure::text, 'EXECUTE',
           pg_catalog.has_function_privilege(current_user, p.oid, 'EXECUTE'), true
    from pg_catalog.pg_proc p join schema s on s.oid = p.pronamespace
    union all
    select 4, 'type gapless.' || quote_ident(t.typname), 'USAGE',
           pg_catalog.has_type_privilege(current_user, t.oid, 'USAGE'), true
    from pg_catalog.pg_type t join schema s on s.oid = t.typnamespace left join pg_catalog.pg_class c on c.oid = t.typrelid
    where t.typtype = 'e' or c.relkind = 'c'
), owners as (
    select distinct t.relowner from pg_catalog.pg_constraint k join tables t on t.oid in (k.conrelid, k.confrelid)
    where k.contype = 'f'
)
select rank, quote_ident(current_user), object, string_agg(privilege, ', ' order by privilege), ours
from needed where not has group by rank, object, ours
union all
select 5, quote_ident(pg_catalog.pg_get_userbyid(o.relowner)), 'schema gapless', 'USAGE', false
from owners o cross join schema s
where not pg_catalog.has_schema_privilege(o.relowner, s.oid, 'USAGE')
order by 1, 3";

/// Returns whether the role may migrate: create the schema, or change an existing one.
const MAY_MIGRATE: &str = "-- may_migrate
select quote_ident(current_user), quote_ident(current_database()),
       case when n.oid is null then pg_catalog.has_database_privilege(current_database(), 'CREATE')
            else pg_catalog.has_schema_privilege(n.oid, 'CREATE') end,
       (select quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) from pg_catalog.pg_class c
         where c.relnamespace = n.oid and not pg_catalog.pg_has_role(c.relowner, 'USAGE') limit 1)
from (select) as one left join pg_catalog.pg_namespace n on n.nspname = 'gapless'";

/// Returns true on a standby, which accepts no writes.
const WRITABLE: &str = "-- writable
select pg_catalog.pg_is_in_recovery()";

impl LedgerReader {
    /// The rights that the role lacks on the existing ledger; none if the schema does not exist.
    pub async fn missing_rights(&self) -> Result<Vec<MissingRight>, LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let rows = session.query(MISSING, &[(&REQUIRED_RIGHTS, tokio_postgres::types::Type::TEXT)]).await?;
        session.rollback().await?;
        let missing = rows.iter().map(|row| MissingRight {
            role: row.get(1),
            object: row.get(2),
            right: row.get(3),
            whose: match (row.get::<_, i32>(0), row.get::<_, bool>(4)) {
                (5, _) => RightsOf::Owner,
                (_, true) => RightsOf::Ours,
                (_, false) => RightsOf::OfVerbs,
            },
        });
        Ok(missing.collect())
    }

    /// An error if the role may not migrate the schema.
    pub async fn may_migrate(&self) -> Result<(), MigrateError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let row = session.one(MAY_MIGRATE, &[]).await?;
        session.rollback().await?;
        let (role, database): (String, String) = (row.get(0), row.get(1));
        match (row.get::<_, bool>(2), row.get::<_, Option<String>>(3)) {
            (false, _) => {
                Err(MigrateError::NotAllowed(format!("role {role} has no right to create in database {database}")))
            }
            (true, Some(owner)) => Err(MigrateError::NotAllowed(format!(
                "role {role} is not a member of {owner}, which owns tables of schema gapless"
            ))),
            (true, None) => Ok(()),
        }
    }

    /// Returns true if the server is a standby and accepts no writes.
    pub async fn is_standby(&self) -> Result<bool, LedgerError> {
        let mut session = self.session().await?;
        session.begin_snapshot().await?;
        let row = session.one(WRITABLE, &[]).await?;
        session.rollback().await?;
        Ok(row.get(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_has_the_sql_that_gives_it() {
        let missing = MissingRight {
            role: "writer".into(),
            right: "INSERT, UPDATE".into(),
            object: "gapless.outcomes".into(),
            whose: RightsOf::Ours,
        };
        assert_eq!(missing.grant(), "grant INSERT, UPDATE on gapless.outcomes to writer");
    }

    #[test]
    fn the_same_right_on_several_tables_is_reported_once_with_one_grant() {
        let missing = |right: &str, object: &str| MissingRight {
            role: "writer".into(),
            right: right.into(),
            object: object.into(),
            whose: RightsOf::Ours,
        };
        let rights = [
            missing("USAGE", "schema gapless"),
            missing("INSERT", "gapless.gaps"),
            missing("SELECT", "gapless.ledger"),
            missing("INSERT", "gapless.outcomes"),
            missing("USAGE", "sequence gapless.event_ids"),
        ];
        let grants: Vec<String> = merged(&rights).iter().map(MissingRight::grant).collect();
        let wanted = [
            "grant USAGE on schema gapless to writer",
            "grant INSERT on gapless.gaps, gapless.outcomes to writer",
            "grant SELECT on gapless.ledger to writer",
            "grant USAGE on sequence gapless.event_ids to writer",
        ];
        assert_eq!(grants, wanted);
    }

    #[test]
    fn each_table_is_listed_once_in_the_required_rights() {
        let mut tables: Vec<&str> = REQUIRED_RIGHTS.lines().filter_map(|line| line.split(' ').next()).collect();
        let named = tables.len();
        tables.sort_unstable();
        tables.dedup();
        assert_eq!(tables.len(), named);
    }
}
