-- Adds the run of a schedule for a slot, and points the schedule at it (wire format 7.4, in one step).
--
-- KEYS  1-11 the queue, 12 the run's job
-- ARGV  1-3 header, 4 repeat key, 5 slot, 6 id of a run without its slot, 7 '1': only if the schedule still stands,
--       '2': only change the pending run of that slot, while it is delayed,
--       8-17 the run (see `insert`)
-- before: schedule absent, or dead (its run is finished, lost or was removed), or its run was just taken
-- after:  one member in repeat with the slot as score, one pending run with the id for that slot
-- answers {0} the schedule was removed, {1, slot} a run is pending already, {2, slot} added
--
-- Bull asks only whether the run's hash exists, so a schedule whose run was removed or promoted is dead until its
-- slot has passed (trap 6). Here a hash in no list, or of a finished run, gives way to a new one.
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q) or is_wrong_counter(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local kind = redis.call('TYPE', KEYS[12]).ok
if kind ~= 'none' and kind ~= 'hash' then
  return {WRONG_TYPE, KEYS[12]}
end

local function is_pending(id)
  return is_hash(q.prefix .. id)
    and (redis.call('ZSCORE', q.delayed, id) or redis.call('LPOS', q.wait, id) or redis.call('LPOS', q.paused, id)
      or redis.call('LPOS', q.active, id) or redis.call('EXISTS', q.prefix .. id .. ':lock') == 1)
end

local current = redis.call('ZSCORE', q.repeats, ARGV[4])
if ARGV[7] == '2' then
  if current ~= ARGV[5] or kind ~= 'hash' or not redis.call('ZSCORE', q.delayed, ARGV[8]) then
    return {1, current or ARGV[5]}
  end
  redis.call('HSET', KEYS[12], 'data', ARGV[10], 'opts', ARGV[11], 'timestamp', ARGV[12], 'delay', ARGV[13], 'priority', ARGV[14])
  return {2, ARGV[5]}
elseif ARGV[7] == '1' then
  if not current then
    return {0}
  end
  -- A schedule must not die for want of memory: nothing is removed here, but the writes that follow are not refused then.
  redis.call('ZREM', q.repeats, '')
elseif current and is_pending(ARGV[6] .. current) then
  return {1, current}
end
redis.call('ZADD', q.repeats, ARGV[5], ARGV[4])
local id = ARGV[8]
if is_pending(id) then
  return {1, ARGV[5]}
end
redis.call('ZREM', q.completed, id)
redis.call('ZREM', q.failed, id)
forget(q.prefix, id)
insert(q, 8)
return {2, ARGV[5]}
