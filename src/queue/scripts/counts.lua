-- How many jobs are in each state. Changes nothing. A transaction would be refused by a Redis without memory.
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header
-- answers {0, waiting, active, completed, failed, delayed, paused}
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = is_wrong(q.wait, 'list') or is_wrong(q.active, 'list') or is_wrong(q.completed, 'zset') or is_wrong(q.failed, 'zset')
  or is_wrong(q.delayed, 'zset') or is_wrong(q.paused, 'list')
if wrong then
  return {WRONG_TYPE, wrong}
end
return {
  0, redis.call('LLEN', q.wait), redis.call('LLEN', q.active), redis.call('ZCARD', q.completed), redis.call('ZCARD', q.failed),
  redis.call('ZCARD', q.delayed), redis.call('LLEN', q.paused),
}
