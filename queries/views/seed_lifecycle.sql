-- One row is one module (seed) in a slot of an environment's network: from its germination to its end.
-- column run_id VARCHAR - the run
-- column env BIGINT 1 environment
-- column seed VARCHAR - name of the module; NULL: not reported
-- column episode BIGINT 1 episode of the run; NULL: not reported
-- column slot VARCHAR - slot of the network
-- column blueprint VARCHAR - kind of module; NULL: not reported
-- column first_update BIGINT 1 update it germinated in; NULL: its germination was not recorded
-- column last_update BIGINT 1 update of its last event
-- column stages VARCHAR[] - stages it entered, in order
-- column last_stage VARCHAR - last stage it entered; NULL: it never left its first stage
-- column ended VARCHAR - `fossilized` or `pruned`; NULL: neither during recording
-- column reason VARCHAR - why it was pruned; NULL: it was not pruned
-- column epochs_total BIGINT epochs its age when it ended; NULL: not reported
-- column improvement DOUBLE % accuracy gained over its life; NULL: not reported
-- column params BIGINT 1 parameters of the module; NULL: not reported
-- column gates_passed BIGINT 1 gates it passed
-- column gates_failed BIGINT 1 gates it failed
WITH lives AS (  -- a later episode may reuse the name of a module, so each germination begins a life
    SELECT *, count(*) FILTER (event = 'germinated') OVER (PARTITION BY run_id, env, slot ORDER BY line) AS life
    FROM slots
)
SELECT
    run_id,
    env,
    any_value(seed) AS seed,
    any_value(episode) AS episode,
    slot,
    any_value(blueprint) AS blueprint,
    min(update) FILTER (event = 'germinated') AS first_update,
    max(update) AS last_update,
    coalesce(list(to_stage ORDER BY line) FILTER (event = 'stage_changed' AND to_stage IS NOT NULL), []) AS stages,
    last(to_stage ORDER BY line) FILTER (event = 'stage_changed') AS last_stage,
    CASE
        WHEN bool_or(event = 'fossilized') THEN 'fossilized'
        WHEN bool_or(event = 'pruned') THEN 'pruned'
    END AS ended,
    any_value(reason) FILTER (event = 'pruned') AS reason,
    max(epochs_total) AS epochs_total,
    last(improvement ORDER BY line) FILTER (event IN ('pruned', 'fossilized')) AS improvement,
    any_value(params) AS params,
    count(*) FILTER (event = 'gate_evaluated' AND passed) AS gates_passed,
    count(*) FILTER (event = 'gate_evaluated' AND NOT passed) AS gates_failed
FROM lives
GROUP BY run_id, env, slot, life
