"""A text of many kinds, on which a variant is compared with the model that it was made from.

Written for this purpose and found in no book, so no model has learned it by heart. Figures of two versions of it
cannot be compared: a report names its digest.
"""

from __future__ import annotations

import hashlib

ENGLISH = r"""
The ferry left at a quarter past six, and by then the harbour had already lost its colour. Marten counted the crates
on the quay a second time. There should have been fourteen; he found thirteen, and a rectangle of dry stone where the
last one had stood until the rain began. Somebody had moved it within the hour. He was not a suspicious man, but he
had kept the books of three shipping companies, and in each of them the trouble had begun with one thing that was not
where it had been written down.

"You are going to tell me it was stolen," said Ilse, who had come down from the office with two cups of tea.

"I am going to tell you that it was moved. Stolen is what people say when they have stopped looking."

She laughed and gave him the cup with the chipped handle. Above them the gulls were quarrelling over a paper bag. The
lighthouse on the far side blinked twice, paused, and blinked once, as it had done every evening since before either
of them was born. A boy on a bicycle stopped, looked at the crates, looked at Marten, and rode away faster than he had
come.

In the end the crate was found behind the fish hall, unopened, with a note under the rope. The note said that the
lifting hook had slipped, that nobody had wanted to leave forty kilograms of glass standing in the rain, and that the
man who moved it had gone off duty without telling anyone because his daughter was being born. Marten folded the note
and put it into the ledger, between the page for October and the page for November, where it stayed for many years.

* * *

Most people think of a glacier as a block of ice that sits on a mountain. It is better to think of it as a very slow
river. Snow falls on the upper part in winter, and more of it falls than the summer can melt. The weight of each new
layer presses the air out of the layers below, until after some decades what was snow has become ice: blue, dense and,
under enough pressure, soft. It begins to creep downhill under its own weight. The middle moves faster than the edges,
the surface faster than the bed, and where the valley bends or drops the ice tears open into crevasses. At the lower
end, melting wins. If as much ice arrives there in a year as melts, the tongue of the glacier stays where it is, even
though every piece of it is moving. If less arrives, the tongue retreats. It never flows backwards; it only ends
earlier.

Bread is older than ovens. The first loaves were probably flat cakes of crushed grain and water, baked on a hot stone
or in the ashes of a fire. What changed everything was a mistake that somebody was patient enough to repeat: dough
that had been forgotten for a day began to bubble, and instead of spoiling it rose. The bubbles are carbon dioxide,
made by yeast that lives on the grain itself. Gluten, a net of proteins that forms when flour is wetted and kneaded,
holds the gas in place until the heat makes the net firm. Too little kneading, and the gas escapes; too much warmth,
and the yeast exhausts itself before the loaf reaches the oven. Bakers who have never heard of proteins know all this
in their hands.

Dear Ms Okafor,

thank you for your letter of 3 March. We have looked into the delay that you describe. Your order was packed on the
same day, but the label carried the number of a house that does not exist in your street, and the carrier returned the
parcel to our warehouse without informing us. We have sent it again today by express, at our own cost, and we enclose
a voucher with our apologies. Should it not have arrived by Friday noon, please call the number below; you will reach
me in person. I would also like to ask you to check whether your address is complete in your customer account, since
we should not like the same thing to happen to you twice.

Yours sincerely,
R. Lindqvist, customer service
"""

EXPLANATIONS = r"""
Question: Why does a bicycle stay upright when it moves, and fall over when it stands still?
Answer: A moving bicycle that begins to lean also begins to steer into the lean, partly because of the way its fork is
built and partly because its rider turns the handlebar without thinking. Steering into the lean moves the wheels back
under the centre of mass. A bicycle that stands still cannot do that, because turning the front wheel does not move
the point where it touches the ground sideways by any useful amount.

Question: A train leaves at 9:40 and arrives at 13:05. It stands still for 25 minutes in total. The route is 360
kilometres long. How fast is it on average while it moves?
Answer: From 9:40 to 13:05 are 3 hours and 25 minutes, which is 205 minutes. Without the 25 minutes of standing still,
180 minutes are left, which is 3 hours. 360 kilometres in 3 hours are 120 kilometres per hour.

Question: What is the difference between weather and climate?
Answer: Weather is what happens outside now or in the next few days: this rain, that wind, tomorrow's frost. Climate
is what can be expected at a place over decades: how often it rains there in May, how cold its winters usually are.
One cold week says little about the climate, just as one throw says little about the dice.

Question: My laptop says that the disk is full, but when I add up my documents they are only a tenth of it. What
should I look at first?
Answer: Documents are rarely what fills a disk. Look first at three other places: the folder with downloads, the
trash, which keeps what was deleted until it is emptied, and the caches of programs such as browsers and editors.
Most systems have a view that sorts folders by size. If the sum is still far from what is used, there may be
snapshots or old versions of the system, which the settings for backups can remove. Do not delete folders whose
purpose you do not know.

Question: Is 91 a prime number?
Answer: No. 91 is 7 times 13.

Question: Explain recursion to a ten-year-old.
Answer: Imagine that you stand in a long queue and want to know how many people are in front of you. You could count
them. Or you could ask the person before you: "How many are in front of you?" and add one. That person does the same,
and so on, until the first person says "nobody". Then the answers travel back, each one larger by one, until yours
arrives. A problem that is solved by asking for the answer to the same, slightly smaller problem is called recursive.

Question: Name three advantages and one disadvantage of a heat pump.
Answer: It turns one unit of electricity into three or four units of heat; it needs no chimney and no store of fuel;
and in summer many of them can cool as well. Its disadvantage is that it works best with large, lukewarm radiators or
heated floors, so an old house often has to be insulated or rebuilt before it pays.

Question: Sort these by size: ant, whale, cat, cow, virus.
Answer: virus, ant, cat, cow, whale.
"""

CODE = r"""
from collections import defaultdict, deque


class Graph:
    # Directed, with weights; nodes are whatever can be a key of a dictionary.

    def __init__(self):
        self.edges = defaultdict(dict)

    def connect(self, start, end, weight=1.0):
        if weight < 0:
            raise ValueError(f"the weight of {start} -> {end} is {weight}; it must not be negative")
        self.edges[start][end] = weight
        self.edges.setdefault(end, {})

    def reachable(self, start):
        seen, waiting = {start}, deque([start])
        while waiting:
            node = waiting.popleft()
            for neighbour in self.edges[node]:
                if neighbour not in seen:
                    seen.add(neighbour)
                    waiting.append(neighbour)
        return seen

    def order(self):
        incoming = {node: 0 for node in self.edges}
        for neighbours in self.edges.values():
            for node in neighbours:
                incoming[node] += 1
        ready = [node for node, count in incoming.items() if count == 0]
        result = []
        while ready:
            node = ready.pop()
            result.append(node)
            for neighbour in self.edges[node]:
                incoming[neighbour] -= 1
                if incoming[neighbour] == 0:
                    ready.append(neighbour)
        if len(result) != len(self.edges):
            raise ValueError("the graph has a cycle")
        return result


def read_temperatures(path):
    total, count = 0.0, 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            try:
                total += float(line.split(",")[1])
            except (IndexError, ValueError):
                print(f"{path}:{number}: no temperature in {line!r}")
                continue
            count += 1
    return total / count if count else None

#include <stdio.h>
#include <string.h>

static int is_palindrome(const char *text) {
    size_t left = 0, right = strlen(text);
    while (left < right) {
        right--;
        if (text[left] != text[right]) {
            return 0;
        }
        left++;
    }
    return 1;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        printf("%s: %s\n", argv[i], is_palindrome(argv[i]) ? "yes" : "no");
    }
    return argc > 1 ? 0 : 1;
}

async function loadOrders(customerId, { limit = 20, signal } = {}) {
  const response = await fetch(`/api/customers/${customerId}/orders?limit=${limit}`, { signal });
  if (!response.ok) {
    throw new Error(`orders of ${customerId}: ${response.status} ${response.statusText}`);
  }
  const { orders } = await response.json();
  return orders
    .filter((order) => order.state !== "cancelled")
    .sort((a, b) => new Date(b.created) - new Date(a.created));
}

SELECT c.name, COUNT(o.id) AS orders, SUM(o.total) AS revenue
FROM customers AS c
LEFT JOIN orders AS o ON o.customer_id = c.id AND o.created >= DATE '2025-01-01'
WHERE c.country IN ('DE', 'FR', 'SE')
GROUP BY c.name
HAVING COUNT(o.id) > 3
ORDER BY revenue DESC
LIMIT 10;

#!/bin/sh
set -eu
target=/srv/backup/$(date +%Y-%m-%d)
mkdir -p "$target"
for folder in /etc /home /var/lib/app; do
    tar --create --gzip --file "$target/$(basename "$folder").tar.gz" "$folder"
done
find /srv/backup -mindepth 1 -maxdepth 1 -type d -mtime +30 -exec rm -r {} +
"""

DATA = r"""
{
  "station": "north-7",
  "position": {"latitude": 59.3312, "longitude": 18.0641, "height": 28},
  "readings": [
    {"time": "2025-06-01T06:00:00Z", "temperature": 11.4, "humidity": 71, "wind": {"speed": 3.2, "from": "SW"}},
    {"time": "2025-06-01T07:00:00Z", "temperature": 12.9, "humidity": 66, "wind": {"speed": 3.6, "from": "SW"}},
    {"time": "2025-06-01T08:00:00Z", "temperature": 14.8, "humidity": 60, "wind": {"speed": 4.1, "from": "W"}},
    {"time": "2025-06-01T09:00:00Z", "temperature": 16.3, "humidity": 55, "wind": {"speed": 4.4, "from": "W"}}
  ],
  "battery": 0.87,
  "faults": []
}

server:
  listen: 127.0.0.1:8080
  workers: 4
  timeouts:
    read: 30s
    write: 30s
    idle: 2m
logging:
  level: info
  file: /var/log/app/server.log
  rotate: {size: 50MB, keep: 7}
features:
  - search
  - export
  - name: import
    enabled: false

| planet  | radius (km) | day (hours) | year (days) | moons |
|---------|------------:|------------:|------------:|------:|
| Mercury |       2,440 |     4,222.6 |        88.0 |     0 |
| Venus   |       6,052 |     2,802.0 |       224.7 |     0 |
| Earth   |       6,371 |        24.0 |       365.2 |     1 |
| Mars    |       3,390 |        24.7 |       687.0 |     2 |

date,product,amount,price,total
2025-02-03,screws 4x40,200,0.04,8.00
2025-02-03,screws 5x60,150,0.07,10.50
2025-02-04,wood glue 500 g,3,6.90,20.70
2025-02-06,sandpaper 120,25,0.55,13.75
2025-02-07,varnish 1 l,2,18.40,36.80
,,,sum,89.75

2025-05-12 08:14:02 INFO  scheduler: 12 jobs are due
2025-05-12 08:14:02 INFO  worker-1: job 4711 begins (nightly report)
2025-05-12 08:14:03 WARN  worker-2: job 4712 waits for a lock that worker-1 holds
2025-05-12 08:14:09 INFO  worker-1: job 4711 ended after 6.8 s
2025-05-12 08:14:09 INFO  worker-2: job 4712 begins (archive)
2025-05-12 08:14:41 ERROR worker-2: job 4712 failed: no space left on device
2025-05-12 08:14:41 INFO  scheduler: job 4712 will be tried again at 08:29:41

Theorem. The square root of two is not a fraction. Proof. Suppose it were p/q in lowest terms. Then p^2 = 2 q^2, so
p^2 is even, and therefore p is even: p = 2r for some whole number r. Substituting gives 4 r^2 = 2 q^2, hence q^2 = 2
r^2, so q is even as well. But then p and q have the common factor 2, which contradicts that the fraction was in
lowest terms. Hence no such fraction exists.

The derivative of x^3 - 6 x^2 + 9 x + 1 is 3 x^2 - 12 x + 9 = 3 (x - 1)(x - 3). It is zero at x = 1 and at x = 3. The
second derivative, 6 x - 12, is negative at 1 and positive at 3, so the function has a local maximum of 5 at x = 1
and a local minimum of 1 at x = 3.
"""

GERMAN = r"""
Als der Bus endlich um die Ecke bog, war der Schnee auf der Bank schon eine Handbreit hoch. Frau Behrend schüttelte
ihren Schirm aus, stieg ein und setzte sich wie jeden Dienstag in die dritte Reihe ans Fenster. Der Fahrer kannte
sie; er wartete, bis sie saß, bevor er anfuhr. Draußen zogen die Schrebergärten vorbei, die Gärtnerei mit den
beschlagenen Scheiben, das alte Stellwerk, in dem seit dem Sommer ein junges Paar wohnte und Kaffee ausschenkte. Sie
hatte sich vorgenommen, dort einmal auszusteigen. Heute, dachte sie, warum eigentlich nicht heute, und drückte den
Knopf.

Ein Stromnetz muss in jedem Augenblick genau so viel Leistung aufnehmen, wie ihm entnommen wird. Wird mehr verbraucht
als erzeugt, drehen sich die Generatoren der Kraftwerke ein wenig langsamer, und die Frequenz sinkt unter fünfzig
Hertz. Das bemerken alle Kraftwerke gleichzeitig, auch wenn sie tausend Kilometer voneinander entfernt sind, und
steuern innerhalb von Sekunden gegen. Je mehr Strom aus Wind und Sonne stammt, desto wichtiger werden Batterien, die
schneller als jede Turbine reagieren, und Verbraucher, die ihren Bedarf verschieben können: Kühlhäuser, Wärmepumpen,
ladende Autos.

Sehr geehrte Damen und Herren, hiermit kündige ich den Mietvertrag über die Wohnung in der Lindenstraße 14
fristgerecht zum 31. August. Bitte bestätigen Sie mir den Eingang dieses Schreibens und schlagen Sie einen Termin für
die Übergabe vor. Die Kaution überweisen Sie bitte auf das Ihnen bekannte Konto. Mit freundlichen Grüßen, Jonas
Petersen

Frage: Was ist der Unterschied zwischen "scheinbar" und "anscheinend"? Antwort: "Anscheinend" sagt man von etwas, das
vermutlich so ist, wie es aussieht; "scheinbar" von etwas, das nur so aussieht. Wer anscheinend schläft, schläft wohl
wirklich; wer scheinbar schläft, ist wach.
"""

FRENCH = r"""
Le marché ouvrait à sept heures, mais les habitués arrivaient bien avant, quand les étals sentaient encore le bois
mouillé et que l'on pouvait parler avec les maraîchers sans crier. Hélène achetait toujours dans le même ordre :
d'abord les herbes, puis les légumes, enfin le fromage, parce qu'il était lourd et qu'il fallait le porter le moins
longtemps possible. Ce matin-là, la place du fromager était vide. Sur un carton, quelqu'un avait écrit : fermé pour
cause de mariage. Elle sourit, acheta une deuxième botte de persil et rentra par le chemin du canal.

Pour faire une bonne vinaigrette, on mélange d'abord le sel et le vinaigre, car le sel ne se dissout pas dans
l'huile. On ajoute ensuite une cuillerée de moutarde, qui aide les deux liquides à rester unis, puis l'huile, peu à
peu, en remuant sans cesse. Trois mesures d'huile pour une de vinaigre suffisent. Une échalote finement hachée, un
peu de poivre, et la salade n'attend plus que vous.

Les marées sont dues à l'attraction de la Lune et, dans une moindre mesure, à celle du Soleil. Du côté de la Terre
qui fait face à la Lune, l'eau est attirée un peu plus que le reste de la planète ; du côté opposé, un peu moins. Il
se forme donc deux bourrelets, et comme la Terre tourne sur elle-même, chaque rivage connaît en général deux marées
hautes par jour. Quand le Soleil et la Lune sont alignés, leurs effets s'ajoutent : ce sont les marées de vive-eau.

Question : quelle est la capitale de l'Australie ? Réponse : ce n'est ni Sydney ni Melbourne, mais Canberra.
"""

DIALOGUE = r"""
User: I would like to move my meeting with the auditors from Tuesday to Thursday. Can you write a short and polite
message?
Assistant: Of course. "Dear Mr Brandt, something has come up that I cannot put off, and I would be grateful if we
could move our meeting from Tuesday to Thursday at the same time. If that does not suit you, please suggest another
hour; I will make myself free. Thank you for your understanding. Kind regards, Anna Weiss."
User: Make it a little less formal, we know each other well.
Assistant: "Hi Thomas, I am sorry, Tuesday has become impossible for me. Could we do Thursday instead, same time,
same place? If that is no good for you, just tell me when. The coffee is on me. Best, Anna."
User: Good. Now a summary in one line for my calendar.
Assistant: Auditors (Thomas Brandt): moved from Tue to Thu, same time; waiting for his answer.

User: The service does not start any more since this morning. The journal says "Address already in use".
Assistant: Then another process listens on the same port. You can find it with `ss -ltnp 'sport = :8080'`, which
shows the name and the number of the process in its last column. If it is an older instance of the same service, stop
it with `systemctl stop` rather than with `kill`, so that systemd knows about it. If it is something else, decide
which of the two has to move: the port of your service is in its configuration file, under `listen`.
User: It is nginx.
Assistant: Then nginx probably got a new site during last night's update. Look into /etc/nginx/sites-enabled for a
file that was changed recently, find the line with `listen 8080`, change the number or remove the site, test the
result with `nginx -t`, and reload it with `systemctl reload nginx`. After that your service can start.
User: That was it, thanks!
Assistant: You are welcome. You may want to write the two ports down somewhere, since this will otherwise happen
again at the next update.

User: Translate into German: "The early bird catches the worm, but the second mouse gets the cheese."
Assistant: "Der frühe Vogel fängt den Wurm, aber die zweite Maus bekommt den Käse."

User: Give me five names for a small cafe near a railway station.
Assistant: 1. Platform Nine. 2. The Late Train. 3. Points and Crossings. 4. The Waiting Room. 5. Second Class.

User: A recipe has 250 g of flour for 4 people. How much do I need for 6?
Assistant: 250 g for 4 people are 62.5 g for each, so 6 people need 375 g.

User: Rewrite so that it can be understood: "In the event of non-occurrence of the delivery within the stipulated
period the orderer shall be entitled to withdrawal from the contract without the setting of a further period."
Assistant: If the delivery does not arrive in time, you may cancel the contract at once.
"""

REFLECTIONS = r"""
There are two ways to look after a machine that many people depend on. One is to touch it as rarely as possible, in
the hope that what worked yesterday will work tomorrow. The other is to touch it often, in small steps, each of which
can be taken back. The first way feels safer and is not. What is never changed is also never practised: after three
years nobody remembers how it was built, the one colleague who knew has moved to another town, and the day on which
something must be changed, because a certificate ends or a disk dies, is the worst possible day for learning. Whoever
changes something every week knows how long it takes, what it breaks, and how to go back.

This does not mean that change is good in itself. A change should have a reason that fits into one sentence, a way to
see whether it did what was intended, and a moment after which it is either confirmed or undone. If any of the three
is missing, it is not a change but a hope. It is remarkable how many outages begin with a hope on a Friday afternoon.

The same holds for measurements. A number without its conditions is decoration. "The server answers in twelve
milliseconds" may be the mean of a thousand requests on an idle machine, or the best of three attempts, or a figure
from a brochure. Which request, how many at once, on which hardware, measured from where, and what about the slowest
one in a hundred? People who ask these questions are not being difficult. They have been woken up at night by an
average.

My grandfather repaired clocks. When a customer brought one that had stopped, he would not open it at once. He put it
on the shelf, wound it, and watched it for a day. Half of them, he said, had nothing wrong with them except the wall
on which they had been hanging: crooked, damp, or above a stove. He charged for the day on the shelf and not for the
repair, and wrote on the bill: "hang it straight". Some customers were angry. The clever ones came back with their
watches.

Once a year the village held a race in which the last one won. Each rider tried to be slower than all others without
ever standing still, and the judges walked along beside them with lanterns. It took the whole night. Children fell
asleep on their fathers' shoulders, the band played the same four songs, and towards morning the favourite usually
fell off his bicycle from sheer concentration. Strangers who heard of it thought that it was a joke. The people of
the village thought that every other race was one.
"""

TEXT = "".join((ENGLISH, EXPLANATIONS, CODE, DATA, GERMAN, FRENCH, DIALOGUE, REFLECTIONS))
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()[:16]
