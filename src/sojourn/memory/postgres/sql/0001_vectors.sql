CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE {schema}.memory_models (
    model integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    dimensions integer NOT NULL
);

-- A search reads the vectors of a user one and all. So they are small, lie near each other, for which there are partitions, and
-- stay in their rows as long as these fit a page.
CREATE TABLE {schema}.memory_vectors (
    scope bigint NOT NULL,
    model integer NOT NULL REFERENCES {schema}.memory_models,
    entry bigint NOT NULL,
    vector halfvec NOT NULL,
    PRIMARY KEY (scope, entry, model),
    FOREIGN KEY (scope, entry) REFERENCES {schema}.memory_entries (scope, entry) ON DELETE CASCADE
) PARTITION BY HASH (scope);

CREATE TABLE {schema}.memory_vectors_0 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 0)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_1 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 1)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_2 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 2)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_3 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 3)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_4 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 4)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_5 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 5)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_6 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 6)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_7 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 7)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_8 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 8)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_9 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 9)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_10 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 10)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_11 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 11)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_12 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 12)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_13 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 13)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_14 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 14)
    WITH (toast_tuple_target = 8160);
CREATE TABLE {schema}.memory_vectors_15 PARTITION OF {schema}.memory_vectors FOR VALUES WITH (MODULUS 16, REMAINDER 15)
    WITH (toast_tuple_target = 8160);
