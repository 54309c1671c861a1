-- Adds jobs, all at once (wire format 6.1).
--
-- KEYS  1-9 the queue
-- ARGV  1-3 header, then ten for each job (see `insert`)
-- before: no key of that id          after: each job is in wait, paused or delayed
-- answers {0, what, id, what, id ...}, `what` as `insert` returns it
local q = open_queue(1, ARGV[1], ARGV[2])
-- A plain job writes nothing before counter and line have told by themselves that they are such; all others look first.
local wrong = #ARGV > 13 and (is_wrong_counter(q) or is_wrong(line_of(q), 'list'))
for first = 4, #ARGV, 10 do
  local delays, prioritised, debounced = ARGV[first + 5] ~= '0', ARGV[first + 6] ~= '0', ARGV[first + 8] ~= ''
  if delays or prioritised or debounced then
    wrong = wrong or delays and is_wrong(q.delayed, 'zset') or prioritised and is_wrong(q.priority, 'zset')
      or is_wrong(line_of(q), 'list')
  end
end
if wrong then
  return {WRONG_TYPE, wrong}
end
local answer = {0}
for first = 4, #ARGV, 10 do
  local id, what = insert(q, first)
  if not id then
    return {WRONG_TYPE, what}
  end
  table.insert(answer, what)
  table.insert(answer, id)
end
return answer
