-- Removes a schedule and its pending runs (wire format 7.5).
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header, 4 repeat key
-- before: any     after: no member of repeat, no delayed run of it; a run that waits or is active stays
-- answers {1} removed, {0} there was none
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
for _, id in ipairs(redis.call('ZRANGE', q.delayed, 0, -1)) do
  if string.sub(id, 1, 7) == 'repeat:' and is_hash(q.prefix .. id) then
    local origin = option(q.prefix .. id, 'repeat')
    if type(origin) == 'table' and origin.key == ARGV[4] then
      redis.call('ZREM', q.delayed, id)
      forget(q.prefix, id)
    end
  end
end
return {redis.call('ZREM', q.repeats, ARGV[4])}
