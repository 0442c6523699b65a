-- One row is one alarm that was raised while the run was recorded, with what tells a fault from an artefact.
-- columns of alarms
-- column first_of_run BOOLEAN - no alarm of this rule and key stands before it in the run
-- column in_a_row BIGINT 1 updates in a row, this one included, with an alarm of this rule and key
-- column nonfinite_fields VARCHAR[] - the trainer's scalars that were not finite in the update; NULL: not
--     looked through
-- column return_variance_low BOOLEAN - the trainer called explained variance not meaningful; NULL: not told
-- column sentinel BOOLEAN - all that was not finite in the update is an explained variance that the trainer called not
--     meaningful: an alarm about NaN is about that mark, not about the training; NULL: not told
WITH raised AS (
    SELECT
        *,
        row_number() OVER one AS number,
        update - dense_rank() OVER one AS stretch
    FROM alarms
    WINDOW one AS (PARTITION BY run_id, rule, key ORDER BY update)
),
scalars_of AS (
    SELECT run_id, update, any_value(nonfinite_fields) AS fields, bool_or(return_variance_low) AS low
    FROM ppo_updates
    GROUP BY ALL
)
SELECT
    r.* EXCLUDE (number, stretch),
    r.number = 1 AS first_of_run,
    r.update - min(r.update) OVER (PARTITION BY r.run_id, r.rule, r.key, r.stretch) + 1 AS in_a_row,
    s.fields AS nonfinite_fields,
    s.low AS return_variance_low,
    s.low AND s.fields = ['explained_variance'] AS sentinel
FROM raised AS r
LEFT JOIN scalars_of AS s USING (run_id, update)
