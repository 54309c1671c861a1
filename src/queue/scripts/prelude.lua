-- Prepended to every script.
--
-- KEYS begins with the block of one queue, in the order of BLOCK; `complete` has a second block for the queue of the
-- successor. ARGV begins with the key prefix `P:Q:`, the publisher's token and the time in ms.
--
-- Every script answers {code, ...}: 0 or more is success, below 0 a refusal (src/queue/scripts.rs names them).
-- Redis does not undo what a script did before an error, so a script looks at types and states first and writes
-- after that: whatever a key holds, a script either does all of its work or none.
local MISSING, NO_LOCK, NOT_ACTIVE, NOT_DELAYED, LOCKED, OTHER_LOCK, NOT_FINISHED, ACTIVE, WRONG_TYPE = -1, -2, -3, -4, -5, -6, -7, -8, -9

local BLOCK = {
  {'wait', 'list'}, {'paused', 'list'}, {'active', 'list'}, {'delayed', 'zset'}, {'priority', 'zset'},
  {'completed', 'zset'}, {'failed', 'zset'}, {'stalled', 'set'}, {'repeats', 'zset'}, {'counter', 'string'},
  {'pause_flag', 'string'},
}

local function open_queue(first, prefix, publisher)
  local q = {prefix = prefix, publisher = publisher}
  for i, part in ipairs(BLOCK) do
    q[part[1]] = KEYS[first + i - 1]
  end
  return q
end

-- The first key of the block that holds something else than it should, or nil.
local function mistyped(q)
  for _, part in ipairs(BLOCK) do
    local kind = redis.call('TYPE', q[part[1]]).ok
    if kind ~= 'none' and kind ~= part[2] then
      return q[part[1]]
    end
  end
end

local function is_hash(key)
  return redis.call('TYPE', key).ok == 'hash'
end

local function number_of(text, default)
  return tonumber(text or '') or default
end

-- A member of a delayed set is ordered by its due time, then by 12 bits of the job's number (wire format 6.2).
local function delayed_score(due, low)
  return string.format('%.0f', due * 4096 + low % 4096)
end

local function announce_delayed(q, due)
  redis.call('PUBLISH', q.prefix .. 'delayed', string.format('%.17g', due))
end

local function announce_waiting(q, id)
  redis.call('PUBLISH', q.prefix .. 'waiting@' .. q.publisher, id)
end

local function line_of(q)
  return redis.call('EXISTS', q.pause_flag) == 1 and q.paused or q.wait
end

-- Puts `id` into the line: after all that have a lower or equal priority number, at the taking end for lifo, else last.
local function push(q, id, priority, lifo)
  local line = line_of(q)
  if priority > 0 then
    redis.call('ZADD', q.priority, priority, id)
    local ahead = redis.call('ZCOUNT', q.priority, 0, priority) - 1
    local pivot = ahead > 0 and redis.call('LINDEX', line, math.max(0, redis.call('LLEN', line) - ahead))
    if pivot then
      redis.call('LINSERT', line, 'BEFORE', pivot, id)
    else
      redis.call('RPUSH', line, id)
    end
  elseif lifo then
    redis.call('RPUSH', line, id)
  else
    redis.call('LPUSH', line, id)
  end
end

-- Puts `id` where it is taken next, whatever its priority.
local function push_first(q, id, priority)
  if priority > 0 then
    redis.call('ZADD', q.priority, priority, id)
  end
  redis.call('RPUSH', line_of(q), id)
end

local function forget(prefix, id)
  redis.call('DEL', prefix .. id, prefix .. id .. ':logs')
end

-- A debounce that has no expiry ends with its job.
local function release_debounce(q, id)
  local name = redis.call('HGET', q.prefix .. id, 'deid')
  if name then
    local key = q.prefix .. 'de:' .. name
    if redis.call('TYPE', key).ok == 'string' and redis.call('PTTL', key) == -1 and redis.call('GET', key) == id then
      redis.call('DEL', key)
    end
  end
end

-- 0 when `token` owns the job's lock.
local function ownership(job, lock, token)
  if not is_hash(job) then
    return MISSING
  end
  local owner = redis.call('GET', lock)
  if not owner then
    return NO_LOCK
  end
  return owner == token and 0 or OTHER_LOCK
end

-- Ends the run that owns the lock: 0 when its job was active.
local function leave_active(q, id, lock)
  redis.call('DEL', lock)
  redis.call('SREM', q.stalled, id)
  return redis.call('LREM', q.active, -1, id) > 0 and 0 or NOT_ACTIVE
end

-- Puts a finished job back into the line; Bull ignores its priority here.
local function push_retried(q, id, lifo)
  redis.call('HDEL', q.prefix .. id, 'finishedOn', 'processedOn', 'failedReason')
  redis.call(lifo and 'RPUSH' or 'LPUSH', line_of(q), id)
end

-- Deletes finished jobs beyond `count` (below 0: no limit) or older than `age` seconds (below 0: no limit).
local function retain(q, finished, now, count, age)
  if age >= 0 then
    local oldest = string.format('%.0f', now - age * 1000)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', finished, '-inf', oldest)) do
      forget(q.prefix, id)
    end
    redis.call('ZREMRANGEBYSCORE', finished, '-inf', oldest)
  end
  if count > 0 then
    local last = string.format('%d', -(count + 1))
    for _, id in ipairs(redis.call('ZRANGE', finished, 0, last)) do
      forget(q.prefix, id)
    end
    redis.call('ZREMRANGEBYRANK', finished, 0, last)
  end
end

-- Stores the job as finished with `field` = `value`, or deletes it when none is to be kept.
local function finish(q, finished, id, now, field, value, count, age)
  release_debounce(q, id)
  if count == 0 then
    forget(q.prefix, id)
    return
  end
  redis.call('ZADD', finished, now, id)
  redis.call('HSET', q.prefix .. id, field, value, 'finishedOn', now)
  retain(q, finished, tonumber(now), count, age)
end

-- A member of a stored `opts`; nil when it is absent or null, or the options cannot be read.
local function option(job, member)
  local readable, opts = pcall(cjson.decode, redis.call('HGET', job, 'opts') or '')
  local value = readable and type(opts) == 'table' and opts[member]
  if value ~= cjson.null and value ~= false then
    return value
  end
end

-- count, age of a retention option; anything unreadable keeps all.
local function retention(job, member)
  local keep = option(job, member)
  if keep == true or keep == 'true' then
    return 0, -1
  elseif type(keep) == 'table' then
    local function limit(value)
      return number_of(value ~= cjson.null and value, -1)
    end
    return limit(keep.count), limit(keep.age)
  end
  return number_of(keep, -1), -1
end

-- Holds a debounce for `id`, for `ttl` ms or ('') until the job ends. The id of the job that holds it already, or nil.
local function hold_debounce(q, name, ttl, id)
  local key = q.prefix .. 'de:' .. name
  local held
  if ttl == '' then
    held = redis.call('SET', key, id, 'NX')
  else
    held = redis.call('SET', key, id, 'PX', ttl, 'NX')
  end
  -- What is no text is nobody's debounce.
  if not held and redis.call('TYPE', key).ok == 'string' then
    return redis.call('GET', key)
  end
end

-- Adds a job. `first` is where its ten arguments begin: custom id or '', name, data, opts, timestamp, delay,
-- priority, lifo, debounce or '', its time in ms or ''.
-- Returns the id and 1; or that of a job which is there already and 0 (the id is taken) or 2 (it holds the debounce).
local function insert(q, first)
  local id, timestamp, delay = ARGV[first], ARGV[first + 4], tonumber(ARGV[first + 5])
  local counter = redis.call('INCR', q.counter)
  if id == '' then
    id = string.format('%.0f', counter)
    -- A custom id may have taken the number.
    while redis.call('EXISTS', q.prefix .. id) == 1 do
      counter = redis.call('INCR', q.counter)
      id = string.format('%.0f', counter)
    end
  elseif redis.call('EXISTS', q.prefix .. id) == 1 then
    redis.call('PUBLISH', q.prefix .. 'duplicated@' .. q.publisher, id)
    return id, 0
  end
  local debounce = ARGV[first + 8]
  if debounce ~= '' then
    local holder = hold_debounce(q, debounce, ARGV[first + 9], id)
    if holder then
      redis.call('PUBLISH', q.prefix .. 'debounced@' .. q.publisher, holder)
      return holder, 2
    end
  end
  redis.call('HSET', q.prefix .. id, 'name', ARGV[first + 1], 'data', ARGV[first + 2], 'opts', ARGV[first + 3],
    'timestamp', timestamp, 'delay', ARGV[first + 5], 'priority', ARGV[first + 6])
  if debounce ~= '' then
    redis.call('HSET', q.prefix .. id, 'deid', debounce)
  end
  if delay > 0 then
    local due = tonumber(timestamp) + delay
    redis.call('ZADD', q.delayed, delayed_score(due, counter), id)
    announce_delayed(q, due)
  else
    push(q, id, tonumber(ARGV[first + 6]), ARGV[first + 7] == '1')
    announce_waiting(q, id)
  end
  return id, 1
end


-- Gives the job in active to the run that `token` names: {2, id, field, value ...}.
local function begin_run(q, id, token, lock, now)
  local job = q.prefix .. id
  redis.call('SET', job .. ':lock', token, 'PX', lock)
  redis.call('SREM', q.stalled, id)
  redis.call('ZREM', q.priority, id)
  redis.call('HSET', job, 'processedOn', now)
  redis.call('PUBLISH', q.prefix .. 'active@' .. q.publisher, id)
  local answer = redis.call('HGETALL', job)
  table.insert(answer, 1, id)
  table.insert(answer, 1, 2)
  return answer
end

-- Takes the next job of a queue that is not paused: as `begin_run`, or {0} nothing waits, {1} something is active and
-- only one may be, {3} look again. Ids without a job are dropped instead of running as empty jobs, at most 1000.
local function take_next(q, token, lock, now, sequential)
  if redis.call('EXISTS', q.pause_flag) == 1 then
    return {0}
  end
  for _ = 1, 1000 do
    local id = redis.call('LINDEX', q.wait, -1)
    if not id then
      return {0}
    end
    if is_hash(q.prefix .. id) then
      if sequential and redis.call('LLEN', q.active) > 0 then
        return {1}
      end
      redis.call('RPOPLPUSH', q.wait, q.active)
      return begin_run(q, id, token, lock, now)
    end
    redis.call('RPOP', q.wait)
    redis.call('ZREM', q.priority, id)
  end
  return {3}
end
