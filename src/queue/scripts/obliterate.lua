-- Deletes a queue, at most 1000 jobs in one call (wire format 6.17).
--
-- KEYS  1-11 the queue, 12 and on: its other keys
-- ARGV  1-3 header, 4 beginning of the orders to cancel, 5 '1': even while jobs are run
-- before: any                        after: paused, with fewer jobs; at last nothing of it
-- answers {0} call again, {1} it is gone
--
-- It is paused first, so that nobody takes what is left when this is broken off.
local q = open_queue(1, ARGV[1], ARGV[2])
local active = redis.call('TYPE', q.active).ok == 'list' and redis.call('LLEN', q.active) or 0
if active > 0 and ARGV[5] ~= '1' then
  return {ACTIVE, tostring(active)}
end
redis.call('SET', q.pause_flag, '1')
local left = 1000

local function delete(id)
  local job = q.prefix .. id
  if is_hash(job) then
    local name = redis.call('HGET', job, 'deid')
    if name then
      drop_debounce(q, id, name)
    end
  end
  forget_limited(q, id)
  forget(q.prefix, id)
  redis.call('DEL', job .. ':lock', ARGV[4] .. id)
  left = left - 1
end

for _, list in ipairs({q.active, q.wait, q.paused}) do
  while left > 0 and redis.call('TYPE', list).ok == 'list' do
    delete(redis.call('RPOP', list))
  end
end
for _, set in ipairs({q.delayed, q.completed, q.failed}) do
  while left > 0 and redis.call('TYPE', set).ok == 'zset' do
    delete(redis.call('ZPOPMIN', set)[1])
  end
end
if left == 0 then
  return {0}
end
for i = 1, #KEYS do
  redis.call('DEL', KEYS[i])
end
return {1}
