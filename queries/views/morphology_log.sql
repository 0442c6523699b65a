-- One row is one change to a network, with its steps (proposal, verdict, mutation, dispatch, commit) combined.
-- column run_id VARCHAR - the run
-- column update BIGINT 1 PPO update it belongs to
-- column env BIGINT 1 environment; NULL: not reported
-- column slot VARCHAR - slot of the network; NULL: not reported
-- column action_id VARCHAR - the change
-- column operation VARCHAR - operation on the slot; NULL: not reported
-- column blueprint VARCHAR - kind of module; NULL: the operation has none
-- column approved BOOLEAN - approved by the governor; NULL: no verdict
-- column reason VARCHAR - reason of the verdict; NULL: no verdict, or not reported
-- column blocked_factor VARCHAR - what the governor blocked it for; NULL: not blocked
-- column steps BIGINT 1 recorded steps
-- column committed BOOLEAN - it was carried out
-- column duration_s DOUBLE s time from its first step to its last; NULL: the times were not reported
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
