-- Prepended to every script. Each function costs a little in every call: what only some need is in placing.lua.
--
-- KEYS begins with the block of one queue, in the order of `open_queue`; `complete` has a second block for the queue of the
-- successor. ARGV begins with the key prefix `P:Q:`, the publisher's token and the time in ms.
--
-- Every script answers {code, ...}: 0 or more is success, below 0 a refusal (src/queue/scripts.rs names them).
-- Redis does not undo what a script did before an error, so a script looks at types and states first and writes
-- after that: whatever a key holds, a script either does all of its work or none.
local MISSING, NO_LOCK, NOT_ACTIVE, NOT_DELAYED, LOCKED, OTHER_LOCK, NOT_FINISHED, ACTIVE, WRONG_TYPE = -1, -2, -3, -4, -5, -6, -7, -8, -9

local function open_queue(first, prefix, publisher)
  return {
    prefix = prefix, publisher = publisher,
    wait = KEYS[first], paused = KEYS[first + 1], active = KEYS[first + 2], delayed = KEYS[first + 3],
    priority = KEYS[first + 4], completed = KEYS[first + 5], failed = KEYS[first + 6], stalled = KEYS[first + 7],
    repeats = KEYS[first + 8], counter = KEYS[first + 9], pause_flag = KEYS[first + 10],
  }
end

-- `key` when it holds something else than it should, else nil.
local function is_wrong(key, kind)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= kind then
    return key
  end
end

-- The first key of the queue that holds something else than it should, or nil. Scripts that run for every job look only at
-- what they use.
local function mistyped(q)
  return is_wrong(q.wait, 'list') or is_wrong(q.paused, 'list') or is_wrong(q.active, 'list') or is_wrong(q.delayed, 'zset')
    or is_wrong(q.priority, 'zset') or is_wrong(q.completed, 'zset') or is_wrong(q.failed, 'zset')
    or is_wrong(q.stalled, 'set') or is_wrong(q.repeats, 'zset') or is_wrong(q.counter, 'string')
    or is_wrong(q.pause_flag, 'string')
end

local function is_hash(key)
  return redis.call('TYPE', key).ok == 'hash'
end

local function number_of(text, default)
  return tonumber(text or '') or default
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

-- Ends the run that owns the lock, and forgets an order to cancel it: 0 when its job was active.
local function leave_active(q, id, lock, order)
  redis.call('DEL', lock, order or lock)
  redis.call('SREM', q.stalled, id)
  return redis.call('LREM', q.active, -1, id) > 0 and 0 or NOT_ACTIVE
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


local function has_priority(fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'priority' then
      return fields[i + 1] ~= '0'
    end
  end
end

-- Gives the job in active, whose fields are these, to the run that `token` names: {2, id, field, value ...}.
local function begin_run(q, id, fields, token, lock, now)
  local job = q.prefix .. id
  redis.call('SET', job .. ':lock', token, 'PX', lock)
  if has_priority(fields) then
    redis.call('ZREM', q.priority, id)
  end
  redis.call('HSET', job, 'processedOn', now)
  redis.call('PUBLISH', q.prefix .. 'active@' .. q.publisher, id)
  local answer = {2, id}
  for i = 1, #fields do
    answer[i + 2] = fields[i]
  end
  -- Read last, it counts.
  table.insert(answer, 'processedOn')
  table.insert(answer, now)
  return answer
end

-- The fields of a job; nil when there is no such job.
local function fields_of(job)
  local fields = redis.pcall('HGETALL', job)
  if not fields.err and #fields > 0 then
    return fields
  end
end

-- Takes the next job of a queue that is not paused: as `begin_run`, or {0} nothing waits, {1} something is active and
-- only one may be, {3} look again, {WRONG_TYPE, key}. `head` is what was read at the taking end. Ids without a job are
-- dropped instead of running as empty jobs, at most 1000.
local function take_next(q, head, token, lock, now, sequential)
  if redis.call('EXISTS', q.pause_flag) == 1 then
    return {0}
  end
  for _ = 1, 1000 do
    local id = head or redis.call('LINDEX', q.wait, -1)
    head = nil
    if not id then
      return {0}
    end
    local fields = fields_of(q.prefix .. id)
    if fields then
      if sequential and redis.call('LLEN', q.active) > 0 then
        return {1}
      end
      local wrong = has_priority(fields) and is_wrong(q.priority, 'zset')
      if wrong then
        return {WRONG_TYPE, wrong}
      end
      redis.call('RPOPLPUSH', q.wait, q.active)
      return begin_run(q, id, fields, token, lock, now)
    end
    redis.call('RPOP', q.wait)
    redis.pcall('ZREM', q.priority, id)
  end
  return {3}
end
