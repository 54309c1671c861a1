-- Begins every script. Each function costs a little in every call, so the others are in parts that a script names when it
-- needs them (src/queue/scripts.rs): running.lua, finishing.lua, placing.lua, settling.lua.
--
-- KEYS begins with the keys of one queue: the six of `open_line` for scripts that run for every job, the eleven of
-- `open_queue` (placing.lua) for the others; `complete` has eleven more for the queue of the successor. ARGV begins with
-- the key prefix `P:Q:`, the publisher's token and the time in ms.
--
-- Every script answers {code, ...}: 0 or more is success, below 0 a refusal (src/queue/scripts.rs names them).
-- Redis does not undo what a script did before an error, so a script looks at types and states first and writes
-- after that: whatever a key holds, a script either does all of its work or none. Each call of a command takes time, about
-- as long as the command itself, so where a command can tell the type as well, TYPE is not asked before it.
-- Without memory (maxmemory reached, noeviction) Redis refuses the commands that may take some, but only as the first that a
-- script writes with: what ends or keeps a run begins with one that takes none (DEL, SREM, LREM, ZREM, PEXPIRE).
local MISSING, NO_LOCK, NOT_ACTIVE, NOT_DELAYED, LOCKED, OTHER_LOCK, NOT_FINISHED, ACTIVE, WRONG_TYPE = -1, -2, -3, -4, -5, -6, -7, -8, -9

-- What runs for every job needs these only.
local function open_line(first, prefix, publisher)
  return {
    prefix = prefix, publisher = publisher, wait = KEYS[first], active = KEYS[first + 1], completed = KEYS[first + 2],
    stalled = KEYS[first + 3], priority = KEYS[first + 4], pause_flag = KEYS[first + 5],
  }
end

-- `key` when it holds something else than it should, else nil.
local function is_wrong(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then
    return key
  end
end

local function is_hash(key)
  return redis.call('TYPE', key).ok == 'hash'
end
