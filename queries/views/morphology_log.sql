-- One row is one change to a network, its steps (proposal, verdict, mutation, dispatch, commit) side by side.
-- column run_id VARCHAR - the run
-- column update BIGINT 1 PPO update it belongs to
-- column env BIGINT 1 environment; NULL: not told
-- column slot VARCHAR - slot of the network; NULL: not told
-- column action_id VARCHAR - the change
-- column operation VARCHAR - what is done to the slot; NULL: not told
-- column blueprint VARCHAR - kind of module; NULL: the operation takes none
-- column approved BOOLEAN - the governor approved of it; NULL: it was not judged
-- column reason VARCHAR - why; NULL: it was not judged, or not told
-- column blocked_factor VARCHAR - what the governor blocked it for; NULL: it did not
-- column steps BIGINT 1 steps recorded
-- column committed BOOLEAN - it was carried out
-- column duration_s DOUBLE s from its first step to its last; NULL: the times were not told
SELECT
    run_id,
    min(update) AS update,
    any_value(env) AS env,
    any_value(slot) AS slot,
    action_id,
    any_value(operation) AS operation,
    any_value(blueprint) AS blueprint,
    bool_and(governor_approved) AS approved,
    any_value(governor_reason) AS reason,
    any_value(governor_blocked_factor) AS blocked_factor,
    count(*) AS steps,
    bool_or(phase = 'commit') AS committed,
    epoch(max(time) - min(time)) AS duration_s
FROM morphology
GROUP BY run_id, action_id
