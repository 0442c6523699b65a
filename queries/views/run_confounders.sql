-- One row is one reason why the evidence of a run is questionable or unusable.
-- column run_id VARCHAR - the run
-- column confounder VARCHAR - a rule that fired, or `nan_sentinel`, `nonfinite`, `ratio_blind`, `update_skipped`,
--     `update_interrupted`, `gap`, `lines_kept_raw`, `not_finished`
-- column key VARCHAR - head, layer or slot affected, reason of a gap, how the run ended; empty if none of these
-- column blocking BOOLEAN - evidence from the affected updates is unusable; if false, it needs care
-- column updates BIGINT 1 updates affected; NULL: it affects the run as a whole
-- column fraction DOUBLE 1 of the recorded updates; NULL: it affects the run as a whole
-- column first_update BIGINT 1 first affected update; NULL: it affects the run as a whole
-- column last_update BIGINT 1 last affected update; NULL: it affects the run as a whole
-- column meaning VARCHAR - what it says about the run
WITH recorded AS (
    SELECT run_id, count(DISTINCT update) AS n FROM ppo_updates GROUP BY run_id
),
affected AS (
    SELECT run_id, rule AS confounder, key, update, severity = 'critical' OR rule = 'numerical_instability' AS blocking,
        'a rule fired during recording' AS meaning
    FROM anomalies
    WHERE NOT (rule = 'numerical_instability' AND coalesce(sentinel, false))
    UNION ALL
    SELECT run_id, 'nan_sentinel', '', update, false,
        'the trainer marks a meaningless explained variance by NaN, and its own check raises an alarm for the mark'
    FROM anomalies
    WHERE rule = 'numerical_instability' AND sentinel
    UNION ALL
    SELECT run_id, 'nonfinite', '', update, true, 'NaN or infinite values occurred in the update'
    FROM ppo_updates
    WHERE nonfinite_count > 0
    UNION ALL
    SELECT run_id, 'update_interrupted', '', update, false, 'its row covers only some of its minibatches'
    FROM ppo_updates
    WHERE interrupted
    UNION ALL
    SELECT run_id, 'update_skipped', '', update, false, 'nothing was learned in it'
    FROM esper_updates
    WHERE update_skipped
),
whole AS (
    SELECT run_id, 'ratio_blind' AS confounder, '' AS key, false AS blocking,
        'every ratio is 1: the policy was evaluated before it changed, so ratios, KL and clipping mean nothing'
            AS meaning
    FROM ppo_updates
    GROUP BY run_id
    HAVING max(abs(ratio_max - 1)) < 1e-4 AND max(abs(ratio_min - 1)) < 1e-4
    UNION ALL
    SELECT run_id, 'lines_kept_raw', reason, false, 'lines of its source without a column in any table' FROM raw_events
    GROUP BY run_id, reason
    UNION ALL
    SELECT run_id, 'not_finished', ended, false, 'nothing shows that it ended normally; its last rows may be missing'
    FROM runs
    WHERE ended <> 'finished'
)
SELECT
    run_id, confounder, key, bool_or(blocking) AS blocking, count(DISTINCT update) AS updates,
    count(DISTINCT update) / any_value(n) AS fraction, min(update) AS first_update, max(update) AS last_update,
    any_value(meaning) AS meaning
FROM affected
LEFT JOIN recorded USING (run_id)
GROUP BY run_id, confounder, key
UNION ALL
SELECT run_id, 'gap', reason, true, max(last_update) - min(first_update) + 1, NULL, min(first_update), max(last_update),
    'rows that should have been recorded are missing'
FROM gaps
GROUP BY run_id, reason
UNION ALL
SELECT run_id, confounder, key, blocking, NULL, NULL, NULL, NULL, meaning FROM whole
