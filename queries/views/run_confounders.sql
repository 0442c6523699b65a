-- One row is one thing that makes the evidence of a run doubtful, or unusable.
-- column run_id VARCHAR - the run
-- column confounder VARCHAR - what: a rule that fired, or `nan_sentinel`, `nonfinite`, `ratio_blind`, `update_skipped`,
--     `update_interrupted`, `gap`, `lines_kept_raw`, `not_finished`
-- column key VARCHAR - head, layer or slot it concerns, reason of a gap, how the run ended; empty where it has none
-- column blocking BOOLEAN - evidence that leans on the updates concerned is unusable; no: it is to be read with care
-- column updates BIGINT 1 updates concerned; NULL: it concerns the run as a whole
-- column fraction DOUBLE 1 of the recorded updates; NULL: it concerns the run as a whole
-- column first_update BIGINT 1 the first of them; NULL: it concerns the run as a whole
-- column last_update BIGINT 1 the last of them; NULL: it concerns the run as a whole
-- column meaning VARCHAR - what it says about the run
WITH recorded AS (
    SELECT run_id, count(DISTINCT update) AS n FROM ppo_updates GROUP BY run_id
),
concerned AS (
    SELECT run_id, rule AS confounder, key, update, severity = 'critical' OR rule = 'numerical_instability' AS blocking,
        'a rule fired while the run was recorded' AS meaning
    FROM anomalies
    WHERE NOT (rule = 'numerical_instability' AND coalesce(sentinel, false))
    UNION ALL
    SELECT run_id, 'nan_sentinel', '', update, false,
        'the trainer marks explained variance as not meaningful by NaN, and its own check raises an alarm for the mark'
    FROM anomalies
    WHERE rule = 'numerical_instability' AND sentinel
    UNION ALL
    SELECT run_id, 'nonfinite', '', update, true, 'NaN or infinite values were met in the update itself'
    FROM ppo_updates
    WHERE nonfinite_count > 0
    UNION ALL
    SELECT run_id, 'update_interrupted', '', update, false, 'its figures are of the minibatches it got to'
    FROM ppo_updates
    WHERE interrupted
    UNION ALL
    SELECT run_id, 'update_skipped', '', update, false, 'nothing was learned in it'
    FROM esper_updates
    WHERE update_skipped
),
whole AS (
    SELECT run_id, 'ratio_blind' AS confounder, '' AS key, false AS blocking,
        'every ratio is 1: the policy was evaluated before it was changed, so ratios, KL and clipping tell nothing'
            AS meaning
    FROM ppo_updates
    GROUP BY run_id
    HAVING max(abs(ratio_max - 1)) < 1e-4 AND max(abs(ratio_min - 1)) < 1e-4
    UNION ALL
    SELECT run_id, 'lines_kept_raw', reason, false, 'lines of its source that no table could take' FROM raw_events
    GROUP BY run_id, reason
    UNION ALL
    SELECT run_id, 'not_finished', ended, false, 'nothing tells that it ended by itself; its last rows may be missing'
    FROM runs
    WHERE ended <> 'finished'
)
SELECT
    run_id, confounder, key, bool_or(blocking) AS blocking, count(DISTINCT update) AS updates,
    count(DISTINCT update) / any_value(n) AS fraction, min(update) AS first_update, max(update) AS last_update,
    any_value(meaning) AS meaning
FROM concerned
LEFT JOIN recorded USING (run_id)
GROUP BY run_id, confounder, key
UNION ALL
SELECT run_id, 'gap', reason, true, max(last_update) - min(first_update) + 1, NULL, min(first_update), max(last_update),
    'rows that were to be recorded are missing'
FROM gaps
GROUP BY run_id, reason
UNION ALL
SELECT run_id, confounder, key, blocking, NULL, NULL, NULL, NULL, meaning FROM whole
