-- Late changes are counted after they were written, so that none is lost to a rule, trigger or policy of a user.
-- Adds a function only; a daemon of the version before may still run, and calls note_late_changes.

-- Locks positions in the order of their ids, then numbers those of the places (position_ids, offsets) at which a reader
-- may have been before. Returns how many of them are late, and how many rows of late_offsets that made. Among the last
-- statements of a transaction; `moving` are positions that it moves afterwards.
create function gapless.record_late_changes(
    position_ids integer[], offsets bigint[], moving integer[], out late bigint, out recorded bigint
) language plpgsql as $$
declare
    changed record;
    last_revision bigint;
    written bigint;
begin
    late := 0;
    recorded := 0;
    perform p.id from gapless.positions p where p.id = any(position_ids || moving) order by p.id for no key update;
    for changed in
        select p.id, array_agg(distinct u."offset" order by u."offset") as places
        from unnest(position_ids, offsets) as u(position_id, "offset")
        join gapless.positions p on p.id = u.position_id
        where u."offset" < greatest(p.next_offset, p.announced_to)
        group by p.id order by p.id
    loop
        late := late + cardinality(changed.places);
        select p.late_revision into last_revision from gapless.positions p where p.id = changed.id;
        update gapless.positions p set late_revision = last_revision + cardinality(changed.places) where p.id = changed.id;
        if found then
            insert into gapless.late_offsets (position_id, revision, "offset")
            select changed.id, last_revision + n.number, n."offset"
            from unnest(changed.places) with ordinality as n("offset", number);
            select count(*) into written from gapless.late_offsets l
            where l.position_id = changed.id and l.revision > last_revision;
            recorded := recorded + written;
        end if;
    end loop;
end $$;
