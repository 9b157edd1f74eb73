//! The objects of schema `gapless` in the server's catalogue, read in one statement.
//!
//! The statement reads only properties that are the same text on every supported PostgreSQL. It leaves out properties
//! on which the guarantee does not depend (fill factors, compression, owners, tablespaces).

use std::collections::BTreeMap;

use super::{Catalogue, Key, Kind};
use crate::ledger::error::LedgerError;
use crate::postgres::session::Session;

const READ: &str = "-- read_catalogue
with ours as (
    select c.oid, c.relkind, c.relowner, c.relacl, c.relrowsecurity, 'gapless.' || quote_ident(c.relname) as name,
           case c.relpersistence when 'p' then 'permanent' when 'u' then 'unlogged' else c.relpersistence::text end as persistence
    from pg_class c where c.relnamespace = to_regnamespace('gapless')
)
select 'type', '', 'gapless.' || quote_ident(t.typname), jsonb_build_object('labels', (
    select string_agg(e.enumlabel, ', ' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid))::text
from pg_type t where t.typnamespace = to_regnamespace('gapless') and t.typtype = 'e'
union all
select 'type', '', o.name, jsonb_build_object('attributes', (
    select string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
    from pg_attribute a where a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped))::text
from ours o where o.relkind = 'c'
union all
select 'sequence', '', o.name, jsonb_build_object(
    'definition', format('as %s increment by %s minvalue %s maxvalue %s %s', format_type(s.seqtypid, null), s.seqincrement,
        s.seqmin, s.seqmax, case when s.seqcycle then 'cycle' else 'no cycle' end),
    'persistence', o.persistence,
    'of', coalesce((
        select d.refobjid::regclass || '.' || quote_ident(a.attname) from pg_depend d
        join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_class'::regclass and d.objid = o.oid and d.deptype in ('a', 'i')), ''))::text
from ours o join pg_sequence s on s.seqrelid = o.oid
union all
select 'table', '', o.name, jsonb_build_object('persistence', o.persistence,
    'storage', case o.relkind when 'r' then 'a table' when 'p' then 'partitioned' when 'f' then 'foreign' else 'materialized' end)::text
from ours o where o.relkind in ('r', 'p', 'f', 'm')
union all
select 'column', o.name, quote_ident(a.attname), jsonb_build_object(
    'type', format_type(a.atttypid, a.atttypmod)
        || case when a.attcollation <> t.typcollation then ' collate ' || a.attcollation::regcollation else '' end,
    'not null', a.attnotnull::text,
    'default', coalesce(pg_get_expr(d.adbin, d.adrelid), ''),
    'identity', case a.attidentity when 'a' then 'always' when 'd' then 'by default' else '' end,
    'generated', a.attgenerated::text,
    'place', a.attnum::text)::text
from ours o
join pg_attribute a on a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped
join pg_type t on t.oid = a.atttypid
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where o.relkind in ('r', 'p', 'f', 'm')
union all
select 'constraint', o.name, quote_ident(k.conname), jsonb_build_object(
    'definition', pg_get_constraintdef(k.oid),
    'validated', k.convalidated::text,
    'index', coalesce((select case when i.indisvalid and i.indisready and i.indislive then 'valid' else 'invalid' end
                         from pg_index i where i.indexrelid = k.conindid and k.contype in ('p', 'u', 'x')), ''),
    'triggers', case when exists (
        select from pg_trigger t where t.tgconstraint = k.oid and t.tgenabled not in ('O', 'A')) then 'disabled' else 'enabled' end)::text
from ours o join pg_constraint k on k.conrelid = o.oid where k.contype in ('p', 'u', 'x', 'f', 'c')
union all
select 'index', o.name, 'gapless.' || quote_ident(c.relname), jsonb_build_object(
    'definition', regexp_replace(pg_get_indexdef(i.indexrelid), ' WITH \\([^)]*\\)', ''),
    'index', case when i.indisvalid and i.indisready and i.indislive then 'valid' else 'invalid' end)::text
from ours o
join pg_index i on i.indrelid = o.oid
join pg_class c on c.oid = i.indexrelid
where not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
    and o.relkind <> 't'
union all
select 'function', '', f.oid::regprocedure::text, jsonb_build_object(
    'definition', case when f.prokind in ('f', 'p') then pg_get_functiondef(f.oid) else 'an aggregate' end)::text
from pg_proc f where f.pronamespace = to_regnamespace('gapless')
union all
select 'view', '', o.name, jsonb_build_object('definition', pg_get_viewdef(o.oid), 'columns', (
    select string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by a.attnum)
    from pg_attribute a where a.attrelid = o.oid and a.attnum > 0 and not a.attisdropped))::text
from ours o where o.relkind = 'v'
union all
select 'trigger', o.name, quote_ident(t.tgname), jsonb_build_object('definition', pg_get_triggerdef(t.oid),
    'function', t.tgfoid::regprocedure::text,
    'enabled', case t.tgenabled when 'D' then 'no' when 'R' then 'on replicas' else 'yes' end)::text
from ours o join pg_trigger t on t.tgrelid = o.oid where not t.tgisinternal
union all
select 'rule', o.name, quote_ident(r.rulename), jsonb_build_object('definition', pg_get_ruledef(r.oid))::text
from ours o join pg_rewrite r on r.ev_class = o.oid where r.rulename <> '_RETURN'
union all
select 'policy', o.name, quote_ident(p.polname), '{}' from ours o join pg_policy p on p.polrelid = o.oid
union all
select 'row security', '', o.name, jsonb_build_object('active', row_security_active(o.oid)::text)::text
from ours o where o.relrowsecurity
union all
select 'grant', '', coalesce(quote_ident(r.rolname), 'public'), jsonb_build_object(
    'privileges', string_agg(distinct lower(g.privilege_type), ', '), 'relations', count(distinct o.oid)::text)::text
from ours o cross join aclexplode(o.relacl) g left join pg_roles r on r.oid = g.grantee
where g.grantee <> o.relowner group by r.rolname";

/// Reads all objects of schema `gapless`; none if the schema does not exist. Needs an open transaction of [`Session`]:
/// its empty search path makes PostgreSQL qualify every name.
pub(crate) async fn read(session: &Session) -> Result<Catalogue, LedgerError> {
    let rows = session.query(READ, &[]).await?;
    let entry = |row: &tokio_postgres::Row| {
        let kind = Kind::named(row.get(0)).expect("the statement returns only known kinds");
        let properties: BTreeMap<String, Option<String>> =
            serde_json::from_str(row.get(3)).expect("the statement makes objects of texts");
        let properties = properties.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        (Key { kind, table: row.get(1), name: row.get(2) }, properties)
    };
    Ok(rows.iter().map(entry).collect())
}
