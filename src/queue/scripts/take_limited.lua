-- Takes the next job that the rate limit lets through (wire format 6.13).
--
-- KEYS  1-11 the queue, 12 limiter, 13 its index
-- ARGV  1-3 header, 4 token, 5 lock in ms, 6 '1': only when nothing is active, 7 '1': tell when the line is empty,
--       8 id that a blocking move brought to active or '', 9 runs in 10 so many ms, 11 '1': by group, 12 '1': never put off
-- before: job at the taking end of wait, or in active without a lock
-- after:  job in active, locked by the token, counted; by group: those that have to wait are in delayed and `limited`
-- answers as `take`, or {4, ms}: nothing may begin before that time has passed; what was claimed is in wait again
--
-- Without groups nobody may overtake, so a job that has to wait stays where it is: it keeps its place and its priority, and is
-- moved once. Bull puts it off as it does here by group, and with bounceBack loses it (trap 13).
local q = open_queue(1, ARGV[1], ARGV[2])
local now, claimed = tonumber(ARGV[3]), ARGV[8] ~= '' and ARGV[8]
local max, duration, grouped, stays = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11] == '1', ARGV[12] == '1'
local wrong = mistyped(q) or is_wrong(KEYS[13], 'hash')
if wrong then
  return {WRONG_TYPE, wrong}
end
if claimed and (redis.call('EXISTS', q.prefix .. claimed .. ':lock') == 1 or not redis.call('LPOS', q.active, claimed)) then
  return {0}
end
if redis.call('EXISTS', q.pause_flag) == 1 then
  if claimed then
    redis.call('LREM', q.active, -1, claimed)
    redis.call('RPUSH', q.paused, claimed)
  end
  return {0}
end
if ARGV[6] == '1' and redis.call('LLEN', q.active) > 0 and redis.call('LLEN', q.wait) > 0 then
  return {1}
end

local function leave(id)
  if claimed then
    redis.call('LREM', q.active, -1, id)
  else
    redis.call('RPOP', q.wait)
  end
end

-- How long `id` has to wait, in ms.
local function wait_of(id, counter, limited)
  local left = math.max(redis.call('PTTL', counter), 0)
  if redis.call('SREM', limited, id) == 1 then
    -- It was put off, so it has had its turn in the queue of those that were.
    redis.call('HDEL', KEYS[13], id)
  elseif grouped then
    -- Jobs that somebody removed, or promoted by hand, wait no more.
    for _, other in ipairs(redis.call('SRANDMEMBER', limited, 5)) do
      if not redis.call('ZSCORE', q.delayed, other) then
        redis.call('SREM', limited, other)
        redis.call('HDEL', KEYS[13], other)
      end
    end
    local before = redis.call('SCARD', limited)
    if before > 0 then
      return before * duration * 1.1 / max + left
    end
  end
  local count = left > 0 and number_of(redis.call('GET', counter), 0) or 0
  return count >= max and left + (count - max) * duration / max or 0
end

for _ = 1, 1000 do
  local id = claimed or redis.call('LINDEX', q.wait, -1)
  if not id then
    if ARGV[7] == '1' then
      redis.call('PUBLISH', q.prefix .. 'drained', '')
    end
    return {0}
  end
  if not is_hash(q.prefix .. id) then
    leave(id)
    redis.call('ZREM', q.priority, id)
  else
    local counter = grouped and KEYS[12] .. ':' .. string.match(id, '[^:]*$') or KEYS[12]
    local limited = counter .. ':limited'
    wrong = is_wrong(counter, 'string') or is_wrong(limited, 'set')
    if wrong then
      return {WRONG_TYPE, wrong}
    end
    local delay = wait_of(id, counter, limited)
    if delay == 0 then
      -- A counter without an expiry, or that is no number, limits nothing: a new one begins.
      if redis.call('PTTL', counter) > 0 and tonumber(redis.call('GET', counter)) then
        redis.call('INCR', counter)
      else
        redis.call('SET', counter, 1, 'PX', duration)
      end
      if claimed then
        redis.call('SREM', q.stalled, id)
      else
        redis.call('RPOPLPUSH', q.wait, q.active)
      end
      redis.call('ZREM', q.priority, id)
      begin_run(q, id, ARGV[4], ARGV[5], ARGV[3])
      return {2, id, fields_of(q.prefix .. id)}
    end
    if not grouped or stays then
      if claimed then
        leave(id)
        push_first(q, id, 0)
      end
      return {4, string.format('%.0f', math.ceil(delay))}
    end
    leave(id)
    redis.call('ZREM', q.priority, id)
    local score = delayed_score(math.ceil(now + delay), number_of(redis.call('GET', counter), 0))
    redis.call('ZADD', q.delayed, score, id)
    announce_delayed(q, tonumber(score) / 4096)
    redis.call('SADD', limited, id)
    redis.call('HSET', KEYS[13], id, limited)
  end
  claimed = false
end
return {3}
