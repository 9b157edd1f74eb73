//! Settings of the server, the database or the role that turn off triggers and foreign keys without changing a table.

use super::Difference;
use crate::ledger::error::LedgerError;
use crate::postgres::session::Session;

/// The setting, its source, and the SQL that resets it wherever it was set for this role and database.
const REPLICATION_ROLE: &str = "-- replication_role
select s.setting, s.source, (
    select string_agg(format('alter %s reset session_replication_role', case
        when r.setrole = 0 and r.setdatabase = 0 then 'role all'
        when r.setrole = 0 then 'database ' || quote_ident(d.datname)
        when r.setdatabase = 0 then 'role ' || quote_ident(u.rolname)
        else 'role ' || quote_ident(u.rolname) || ' in database ' || quote_ident(d.datname) end), '; ')
    from pg_db_role_setting r
    left join pg_database d on d.oid = r.setdatabase
    left join pg_roles u on u.oid = r.setrole
    where (r.setdatabase = 0 or d.datname = current_database()) and (r.setrole = 0 or u.rolname = session_user)
      and exists (select from unnest(r.setconfig) as c where c ilike 'session_replication_role=replica'))
from pg_settings s where s.name = 'session_replication_role'";

/// A difference if `session_replication_role` is `replica`: such a session fires no trigger and checks no foreign key.
pub(crate) async fn check(session: &Session) -> Result<Option<Difference>, LedgerError> {
    let row = session.one(REPLICATION_ROLE, &[]).await?;
    let (setting, source): (&str, &str) = (row.get(0), row.get(1));
    if setting != "replica" {
        return Ok(None);
    }
    let remedy = match (row.get::<_, Option<String>>(2), source) {
        (Some(sql), _) => sql,
        (None, "client") => "-- take session_replication_role out of the options in database.url".to_owned(),
        (None, _) => {
            "alter system reset session_replication_role; select pg_reload_conf() -- and take it out of postgresql.conf"
                .to_owned()
        }
    };
    let difference = format!("is replica (set by: {source}), so that no trigger fires and no foreign key is checked");
    Ok(Some(Difference { object: "setting session_replication_role".to_owned(), difference, remedy }))
}
