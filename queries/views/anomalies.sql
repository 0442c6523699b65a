-- One row is one alarm raised during recording, with what distinguishes a fault from an artefact.
-- columns of alarms
-- column first_of_run BOOLEAN - it is the first alarm of this rule and key in the run
-- column in_a_row BIGINT 1 consecutive updates up to this one with an alarm of this rule and key
-- column nonfinite_fields VARCHAR[] - the trainer's scalars that were not finite in the update; NULL: not
--     checked
-- column return_variance_low BOOLEAN - the trainer declared explained variance meaningless; NULL: not reported
-- column sentinel BOOLEAN - the only non-finite scalar of the update is an explained variance that the trainer
--     declared meaningless, so an alarm about NaN is about that mark and not the training; NULL: not reported
WITH raised AS (
    SELECT
        *,
        row_number() OVER alarm AS number,
        update - dense_rank() OVER alarm AS streak
    FROM alarms
    WINDOW alarm AS (PARTITION BY run_id, rule, key ORDER BY update)
),
scalars_of AS (
    SELECT run_id, update, any_value(nonfinite_fields) AS fields, bool_or(return_variance_low) AS low
    FROM ppo_updates
    GROUP BY ALL
)
SELECT
    r.* EXCLUDE (number, streak),
    r.number = 1 AS first_of_run,
    r.update - min(r.update) OVER (PARTITION BY r.run_id, r.rule, r.key, r.streak) + 1 AS in_a_row,
    s.fields AS nonfinite_fields,
    s.low AS return_variance_low,
    s.low AND s.fields = ['explained_variance'] AS sentinel
FROM raised AS r
LEFT JOIN scalars_of AS s USING (run_id, update)
