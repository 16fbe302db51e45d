-- A database as schema version 1 left it: one run that has finished, one that waits for an answer.
PRAGMA application_id = 1399810674;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE calls (
                sid INTEGER NOT NULL,
                call_id TEXT NOT NULL,
                seq INTEGER NOT NULL,
                is_call INTEGER NOT NULL,
                open INTEGER NOT NULL,
                PRIMARY KEY (sid, call_id, is_call, seq)
            ) STRICT, WITHOUT ROWID
            ;
INSERT INTO "calls" VALUES(1,'018bcfe56800213d3d9f6cdc5ec70bee',4,0,0);
INSERT INTO "calls" VALUES(1,'018bcfe56800213d3d9f6cdc5ec70bee',3,1,0);
INSERT INTO "calls" VALUES(2,'018bcfe568004a44a4bd961695f55874',3,1,1);
CREATE TABLE events (
                sid INTEGER NOT NULL,
                seq INTEGER NOT NULL,
                run_uid INTEGER NOT NULL,
                pos INTEGER,
                ordinal INTEGER,
                path TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                supersedes INTEGER,
                superseded INTEGER NOT NULL DEFAULT 0,
                summary_until INTEGER,
                body TEXT NOT NULL,
                PRIMARY KEY (sid, seq)
            ) STRICT, WITHOUT ROWID
            ;
INSERT INTO "events" VALUES(1,1,1,NULL,0,'',1,NULL,0,NULL,'{"id":"018bcfe568006b27270e7063f48516e2","invocationId":"finished","author":"user","timestamp":1700000000.0,"content":{"role":"user","parts":[{"text":"To Rome"}]},"ordinal":0}');
INSERT INTO "events" VALUES(1,2,1,2,1,'',1,NULL,0,NULL,'{"id":"018bcfe56800cff356b15ee5161bb660","invocationId":"finished","author":"booking","timestamp":1700000000.0,"content":{"role":"model","parts":[{"text":"The flight is 300. "}]},"actions":{"stateIncrements":{"tries":1}}}');
INSERT INTO "events" VALUES(1,3,1,3,2,'',1,NULL,0,NULL,'{"id":"018bcfe56800207a5550323b38da5e82","invocationId":"finished","author":"booking","timestamp":1700000000.0,"content":{"role":"model","parts":[{"functionCall":{"id":"018bcfe56800213d3d9f6cdc5ec70bee","name":"adk_request_input","args":{"key":"confirm","message":{"text":"Book it?","price":300},"response_schema":{"type":"boolean"}}}}]},"longRunningToolIds":["018bcfe56800213d3d9f6cdc5ec70bee"]}');
INSERT INTO "events" VALUES(1,4,1,NULL,NULL,'',1,NULL,0,NULL,'{"id":"018bcfe5680065bfdd8ed2cfe47c06e4","invocationId":"finished","author":"user","timestamp":1700000000.0,"content":{"role":"user","parts":[{"functionResponse":{"id":"018bcfe56800213d3d9f6cdc5ec70bee","name":"adk_request_input","response":{"result":true}}}]}}');
INSERT INTO "events" VALUES(1,5,1,4,3,'',2,NULL,0,NULL,'{"id":"018bcfe56800c20fd489c5066067d4d7","invocationId":"finished","author":"booking","timestamp":1700000000.0,"content":{"role":"model","parts":[{"text":"Booked 12A."}]}}');
INSERT INTO "events" VALUES(2,1,2,NULL,0,'',1,NULL,0,NULL,'{"id":"018bcfe568002e68197bac7eff7f6a3f","invocationId":"waiting","author":"user","timestamp":1700000000.0,"content":{"role":"user","parts":[{"text":"To Paris"}]},"ordinal":0}');
INSERT INTO "events" VALUES(2,2,2,2,1,'',1,NULL,0,NULL,'{"id":"018bcfe568007d9bddd55088fd719e63","invocationId":"waiting","author":"booking","timestamp":1700000000.0,"content":{"role":"model","parts":[{"text":"The flight is 300. "}]},"actions":{"stateIncrements":{"tries":1}}}');
INSERT INTO "events" VALUES(2,3,2,3,2,'',1,NULL,0,NULL,'{"id":"018bcfe56800e8157c2bd6d1761071c7","invocationId":"waiting","author":"booking","timestamp":1700000000.0,"content":{"role":"model","parts":[{"functionCall":{"id":"018bcfe568004a44a4bd961695f55874","name":"adk_request_input","args":{"key":"confirm","message":{"text":"Book it?","price":300},"response_schema":{"type":"boolean"}}}}]},"longRunningToolIds":["018bcfe568004a44a4bd961695f55874"]}');
CREATE TABLE interrupts (
                n INTEGER PRIMARY KEY,
                run_uid INTEGER NOT NULL,
                id TEXT NOT NULL,
                key TEXT NOT NULL,
                digest TEXT NOT NULL,
                prompt TEXT NOT NULL,
                schema TEXT,
                status TEXT NOT NULL,
                answer TEXT,
                created_at REAL NOT NULL,
                expires_at REAL,
                answered_at REAL
            ) STRICT
            ;
INSERT INTO "interrupts" VALUES(1,1,'018bcfe56800213d3d9f6cdc5ec70bee','confirm','f030fb8c725af26ea83cda88a945242860d8353ba347b29feae0f4fff39c8b63','{"text":"Book it?","price":300}','{"type":"boolean"}','answered','true',1700000000.0,NULL,1700000000.0);
INSERT INTO "interrupts" VALUES(2,2,'018bcfe568004a44a4bd961695f55874','confirm','f030fb8c725af26ea83cda88a945242860d8353ba347b29feae0f4fff39c8b63','{"text":"Book it?","price":300}','{"type":"boolean"}','open',NULL,1700000000.0,NULL,NULL);
CREATE TABLE runs (
                uid INTEGER PRIMARY KEY AUTOINCREMENT,
                sid INTEGER NOT NULL,
                id TEXT NOT NULL,
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                no INTEGER NOT NULL,
                status TEXT NOT NULL,
                attempt INTEGER NOT NULL,
                deaths INTEGER NOT NULL DEFAULT 0,
                agent TEXT,
                base_ordinal INTEGER NOT NULL DEFAULT 0,
                base_seq INTEGER NOT NULL DEFAULT 0,
                transfers INTEGER NOT NULL DEFAULT 0,
                first_seq INTEGER,
                message TEXT,
                config TEXT NOT NULL,
                attached INTEGER NOT NULL,
                cancel_requested TEXT,
                error TEXT,
                last_pos INTEGER NOT NULL,
                top INTEGER NOT NULL DEFAULT 0,
                retry_of TEXT,
                usage TEXT,
                custom_metadata TEXT,
                answered INTEGER NOT NULL DEFAULT 0,
                has_undo INTEGER NOT NULL DEFAULT 0,
                has_asked INTEGER NOT NULL DEFAULT 0,
                created_at REAL NOT NULL,
                started_at REAL,
                finished_at REAL
            ) STRICT
            ;
INSERT INTO "runs" VALUES(1,1,'finished','trains','ann',1,'completed',2,0,NULL,0,0,0,1,NULL,'{}',0,NULL,NULL,5,3,NULL,NULL,NULL,0,0,1,1700000000.0,1700000000.0,1700000000.0);
INSERT INTO "runs" VALUES(2,2,'waiting','trains','ann',1,'waiting',1,0,NULL,0,0,0,1,NULL,'{}',0,NULL,NULL,3,2,NULL,NULL,NULL,0,1,1,1700000000.0,1700000000.0,NULL);
CREATE TABLE sessions (
                sid INTEGER PRIMARY KEY AUTOINCREMENT,
                uid TEXT NOT NULL,
                app_name TEXT NOT NULL,
                user_id TEXT NOT NULL,
                id TEXT NOT NULL,
                active_agent TEXT,
                event_count INTEGER NOT NULL,
                run_no INTEGER NOT NULL,
                created_at REAL NOT NULL,
                updated_at REAL NOT NULL
            ) STRICT
            ;
INSERT INTO "sessions" VALUES(1,'018bcfe56800528104276847f70af232','trains','ann','past',NULL,5,1,1700000000.0,1700000000.0);
INSERT INTO "sessions" VALUES(2,'018bcfe56800ac5ad68e4607103a8391','trains','ann','trip',NULL,3,1,1700000000.0,1700000000.0);
CREATE TABLE state (owner TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (owner, key)) STRICT, WITHOUT ROWID;
INSERT INTO "state" VALUES('s1','tries','1');
INSERT INTO "state" VALUES('s2','tries','1');
CREATE TABLE steps (
                id INTEGER PRIMARY KEY,
                run_uid INTEGER NOT NULL,
                key TEXT NOT NULL,
                status TEXT NOT NULL,
                result TEXT NOT NULL,
                error TEXT,
                attempt INTEGER NOT NULL,
                started_at REAL NOT NULL,
                finished_at REAL NOT NULL
            ) STRICT
            ;
INSERT INTO "steps" VALUES(1,1,'hold','done','{"seat":"12A"}',NULL,1,1700000000.0,1700000000.0);
INSERT INTO "steps" VALUES(2,2,'hold','done','{"seat":"12A"}',NULL,1,1700000000.0,1700000000.0);
CREATE TABLE undo (
                id INTEGER PRIMARY KEY,
                run_uid INTEGER NOT NULL,
                seq INTEGER NOT NULL,
                key TEXT NOT NULL,
                old TEXT,
                new TEXT,
                by TEXT
            ) STRICT
            ;
INSERT INTO "undo" VALUES(1,2,2,'tries',NULL,'1','1');
CREATE UNIQUE INDEX sessions_by_key ON sessions (app_name, user_id, id);
CREATE INDEX sessions_by_app ON sessions (app_name);
CREATE UNIQUE INDEX runs_by_id ON runs (app_name, id, user_id);
CREATE INDEX runs_by_session ON runs (app_name, user_id, sid);
CREATE INDEX runs_by_app ON runs (app_name);
CREATE INDEX runs_unfinished ON runs (app_name, sid) WHERE finished_at IS NULL;
CREATE INDEX events_by_run ON events (run_uid, pos);
CREATE UNIQUE INDEX events_by_identity ON events (run_uid, ordinal, path) WHERE superseded = 0;
CREATE INDEX events_summaries ON events (sid, seq) WHERE summary_until IS NOT NULL AND superseded = 0;
CREATE INDEX calls_open ON calls (sid, seq) WHERE open = 1;
CREATE INDEX undo_by_run ON undo (run_uid);
CREATE UNIQUE INDEX steps_by_key ON steps (run_uid, key);
CREATE UNIQUE INDEX interrupts_by_id ON interrupts (run_uid, id);
CREATE INDEX interrupts_open ON interrupts (run_uid) WHERE status = 'open';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('sessions',2);
INSERT INTO "sqlite_sequence" VALUES('runs',2);
COMMIT;
