-- Removes jobs of one state that are old enough, at most 1000 looked at in one call (wire format 6.16).
--
-- KEYS  1-11 the queue, 12 the list or set of the state
-- ARGV  1-3 header, 4 beginning of the orders to cancel, 5 removed when their time is before this ('': all), 6 how many from the
--       old end to pass over, 7 how many to remove at most, 8 '1': never a pending run of a schedule
-- before: jobs in that state         after: no trace of those removed
-- answers {0, passed over in all, '1' when the end was reached, removed id ...}
--
-- A job's time is that of its end, else of its last begin, else of its creation; one without a hash is removed too. A
-- locked job is never removed. Bull compares times as text, and a limited clean of delayed jobs finds none there.
local LOOK = 1000
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local place, before, skip, limit = KEYS[12], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local is_list = place == q.wait or place == q.active or place == q.paused
local is_finished = place == q.completed or place == q.failed
local ids, total
if is_list then
  total = redis.call('LLEN', place)
  ids = redis.call('LRANGE', place, math.max(0, total - skip - LOOK), total - skip - 1)
  if skip >= total then
    ids = {}
  end
else
  total = redis.call('ZCARD', place)
  ids = redis.call('ZRANGE', place, skip, skip + LOOK - 1)
end

local function is_old(id)
  local job = q.prefix .. id
  if redis.call('EXISTS', job .. ':lock') == 1 or ARGV[8] == '1' and string.sub(id, 1, 7) == 'repeat:' then
    return false
  end
  if not is_hash(job) then
    return true
  end
  if ARGV[5] == '' then
    return true
  end
  local times = redis.call('HMGET', job, 'finishedOn', 'processedOn', 'timestamp')
  local time = number_of(times[1] or times[2] or times[3], 0)
  -- What is no number, which is not even equal to itself, is as old as can be.
  return time ~= time or time < before
end

local answer, passed, looked = {0, 0, '0'}, skip, 0
for i = 1, #ids do
  -- A list's old end is its last element.
  local id = is_list and ids[#ids + 1 - i] or ids[i]
  if #answer - 3 >= limit then
    break
  end
  looked = looked + 1
  if is_old(id) then
    if is_list then
      redis.call('LREM', place, -1, id)
    else
      redis.call('ZREM', place, id)
    end
    redis.call('ZREM', q.priority, id)
    redis.call('SREM', q.stalled, id)
    forget_limited(q, id)
    local name = is_hash(q.prefix .. id) and redis.call('HGET', q.prefix .. id, 'deid')
    if name and is_finished then
      release_debounce(q, id, name)
    elseif name then
      drop_debounce(q, id, name)
    end
    forget(q.prefix, id)
    redis.call('DEL', ARGV[4] .. id)
    table.insert(answer, id)
  else
    passed = passed + 1
  end
end
answer[2] = passed
if skip + looked >= total then
  answer[3] = '1'
end
return answer
