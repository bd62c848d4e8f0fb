"""Text for synthetic speech: sentences written for this package, and how many of them there are among composed ones.

They were written to be phonetically broad, with the rare sounds of English (the middle of "measure", the ends of "boy"
and "book", the starts of "thin", "then" and "young") in many of them. An hour of speech takes some 1,300 sentences, so
most are of the grammar (`stec.audio.grammar`).
"""

import numpy as np

from stec.audio.grammar import compose

SENTENCES: tuple[str, ...] = tuple(
    line.strip()
    for line in """
    The boy measured the pool with a short piece of rope.
    Young foxes often play beside the river before sunrise.
    She put the good cushion back on the usual chair.
    Nothing pleases a thirsty horse more than cool water.
    We heard a strange noise behind the garage last night.
    Their father bought three thick books about northern birds.
    An unusual vision of treasure drove the old sailor on.
    Joyce chose a jar of orange jelly for the judge.
    Both of them breathed slowly while the thunder rolled.
    The cook shook a pinch of sugar into the pudding.
    A huge yellow moon rose over the quiet valley.
    Five brave women climbed the icy path to the castle.
    The engine coughed twice and then refused to start.
    Please leave the wet boots outside the kitchen door.
    His voice was hoarse, but his choice was clear.
    Our neighbour grows purple beans along the fence.
    Why would anyone throw away such a beautiful watch?
    The teacher drew a large circle in the middle of the board.
    Few people know where this narrow road leads.
    A gentle breeze carried the smell of fresh bread.
    He thought about the question for nearly an hour.
    The baker leaves his house at four each morning.
    Cheap shoes seldom last through a long winter.
    Zoe found a dozen tiny shells in the sand.
    The pigeon pushed its way through the broken window.
    You should allow the paint to dry for a day.
    Loud music echoed through the empty hallway.
    Does the yacht sail around the southern point?
    I enjoy the leisure of a slow weekend breakfast.
    The village choir sang under the old oak tree.
    She gave the beggar a coin and a warm coat.
    Most of the guests arrived shortly after the rain.
    The chairman spoke with pleasure of the new bridge.
    A spark from the fire burned a hole in the rug.
    Where did the children hide the birthday present?
    The doctor washed her hands and put on gloves.
    Ask him whether the train stops at every station.
    A single feather drifted down from the nest.
    The soldier polished his boots until they shone.
    Grey clouds gathered above the harbour by noon.
    Nobody could explain the sudden change in the weather.
    It took us a week to cross the mountain range.
    The young king refused to wear the heavy crown.
    Fresh fish is sold each Friday near the church.
    The clever fox outwitted the farmer once again.
    My cousin works as a nurse in a busy hospital.
    We poured the boiling oil into a metal dish.
    The path turns left just beyond the wooden gate.
    Thank you for the thoughtful letter you wrote.
    A choir of frogs began as soon as it grew dark.
    The museum shows tools from an age before iron.
    Could you look after the puppy until Thursday?
    The merchant weighed each bag of pepper with care.
    Heavy trucks are not allowed over this bridge.
    She wore a bracelet of silver and green glass.
    The ceiling was painted with stars and angels.
    He hurried down the stairs and out of the house.
    Every pupil should bring a ruler and two pencils.
    The lawyer coughed, frowned, and closed the file.
    A cold fog crept in from the sea at dusk.
    The farmer's youngest daughter keeps a tame goose.
    How many oranges are there in the basket?
    The road was rough, and the wheels were worn.
    They chose the room with a view of the lake.
    The judge asked the witness to speak more slowly.
    A bee buzzed around the jar of honey.
    We usually have cheese and fruit after dinner.
    The author signed a copy of her latest novel.
    The tower was built of stone from the quarry.
    A brown leather bag was left on the bench.
    You were foolish to trust a man like that.
    He played the same tune over and over again.
    The cave was dark, damp, and full of bats.
    She keeps her jewels in a box beneath the bed.
    The weather should improve towards the evening.
    Good butter makes the pastry light and crisp.
    The old clock in the hall strikes every quarter.
    There was a long pause before anyone replied.
    A thin layer of ice covered the garden pond.
    The mayor opened the fair with a short speech.
    Two white swans glided past the wooden pier.
    The jury could not agree upon the verdict.
    I would rather walk than wait for the bus.
    The carpenter measured the shelf and sawed it in half.
    Bright red berries hung from the lower branches.
    The ship was loaded with coal, wool, and timber.
    His uncle owns a small vineyard in the south.
    The shepherd counted his sheep as they passed.
    A loose wire caused the lamp to flicker.
    The girl whistled, and the dog came running.
    We could see the lighthouse from our bedroom.
    Salt and vinegar are all that you need.
    The poor fellow had lost his voice entirely.
    A flash of lightning lit up the whole sky.
    The pianist practised until her fingers ached.
    Someone has taken the key from its hook.
    The queen was known for her generous nature.
    The rabbit froze when it saw the hawk above.
    Turn the handle gently and push with your shoulder.
    The storm tore three tiles from the roof.
    A good neighbour is worth more than gold.
    The boat rocked softly against the harbour wall.
    He earned his living by mending broken clocks.
    Her laughter could be heard across the yard.
    The team cheered as the ball crossed the line.
    There is no smoke without a little fire.
    The beige carpet was an unusual purchase.
    Six thieves were caught with the stolen jewels.
    We measured the width of the ditch with a pole.
    The tailor pinned the cloth and cut it quickly.
    Would you care for another cup of tea?
    A curious cat watched the goldfish all day.
    The president thanked the workers for their effort.
    The deer vanished into the shadow of the wood.
    You will find fresh towels in the cupboard.
    The ground shook as the heavy train went by.
    I wish you joy in your new house.
    The teeth of the saw were bent and rusty.
    My grandmother told stories about giants and dwarfs.
    The taxi turned sharply into the narrow street.
    Rough seas kept the fishing boats in port.
    The scholar read the ancient page with difficulty.
    A row of poplars marks the edge of the field.
    She whispered the answer into her brother's ear.
    The pupils were allowed to choose their own partners.
    The gardener dug a trench and filled it with manure.
    Boil the potatoes for twenty minutes with salt.
    The north wind blew the washing off the line.
    He put his foot on the ladder and looked up.
    The pilot saw nothing but ocean beneath the wings.
    It was the first time that she had flown.
    The puzzle has more than a thousand pieces.
    Warm sunshine brought the bees out of the hive.
    The butcher wrapped the meat in brown paper.
    A crowd gathered to watch the street magician.
    The wound healed without leaving a scar.
    Sugar dissolves faster in hot water than in cold.
    The referee blew his whistle and pointed to the spot.
    They rowed ashore in the pale light of dawn.
    The price of wheat rose sharply in the autumn.
    He has a wife, two boys, and a parrot.
    The poet lived alone in a cottage by the sea.
    Do not touch the stove while it is hot.
    The caravan crossed the desert in forty days.
    The colour of the curtains has faded badly.
    A trout leaped clear of the foaming stream.
    The nurse took his pulse and shook her head.
    Your decision will have serious consequences.
    The lift is out of order, so we must use the stairs.
    A family of mice lives behind the cooker.
    The choice of wood decides the tone of a violin.
    We watched the parade from the roof of the bank.
    The old bridge groaned under the weight of the cart.
    Everyone agreed that the soup was too spicy.
    The goat chewed through the rope and escaped.
    He pulled the hood over his ears and walked on.
    The captain ordered the crew to lower the anchor.
    A glass of cool juice stood on the tray.
    The letter was addressed to the wrong house.
    Thick ivy covered the southern wall of the abbey.
    She put both feet in the brook and sighed.
    The cellar smelled of apples and old wine.
    The boys threw stones at an empty bottle.
    The orchestra tuned before the curtain rose.
    There were footprints in the snow below the window.
    The engineer drew the plan on the back of an envelope.
    Is there any milk left in the jug?
    The cheese had been aged for over a year.
    He yawned, stretched, and reached for his glasses.
    A faint smile crossed the face of the stranger.
    The town council voted to repair the fountain.
    The moth circled the candle until it went out.
    She learned to swim before she could read.
    The bus was late because of the thick fog.
    Fetch me the hammer and a handful of nails.
    The birds were quiet just before the eclipse.
    A thousand candles lit the vast cathedral.
    The wolf's howl carried for miles over the plain.
    He bought a used car with an oil leak.
    The hotel provides towels, soap, and a robe.
    Our journey through the gorge took nine hours.
    The bell rings twice at the end of each lesson.
    Many hands make the heaviest load seem light.
    They argued about whether to go by road or by rail.
    The lamp cast long shadows on the bare wall.
    The mouse nibbled at the corner of the biscuit.
    A pair of grey gloves lay on the pavement.
    He tied the parcel with a length of string.
    The vet examined the paw of the injured dog.
    Should we turn back or push on to the summit?
    The mill wheel turned slowly in the shallow stream.
    The wool was spun, dyed, and woven by hand.
    She owed the shop nearly eighty pounds.
    An owl hooted somewhere in the depths of the forest.
    The chef tasted the sauce and added more garlic.
    Their tent was pitched beside a clear blue lake.
    The prisoner swore that he had told the truth.
    The last guest left well after midnight.
    A bucket of water was thrown over the flames.
    The oath was sworn in front of the whole assembly.
    He smoothed the rough edge with a coarse file.
    The sculptor worked in marble, bronze, and clay.
    Could the noise in the attic be a squirrel?
    The lecture on ancient Egypt was rather dull.
    We shared a loaf of bread and some olives.
    The river flooded the lower fields in March.
    A toy train ran in circles around the tree.
    The girl with the red scarf won the race.
    The wheel of the barrow squeaked at each turn.
    He wrote his name in the dust on the table.
    The evening paper printed a picture of the bridge.
    The earth was hard and cracked from the drought.
    Few of the coins were made of pure gold.
    A sudden gust blew the papers off the desk.
    The bishop walked slowly down the middle of the aisle.
    The twins wore the same clothes and the same smile.
    Fold the sheet in half and then in half again.
    The garage charges too much for an oil change.
    The spider had woven its web across the doorway.
    They found the lost child asleep under a hedge.
    The treaty was signed in the presence of both kings.
    A thorn had lodged itself in the lion's paw.
    Choose a smooth stone that fits into your palm.
    The cattle were driven to pasture before dawn.
    The waiter brought us two bowls of onion soup.
    I had never seen such an enormous pumpkin.
    The fire warmed the room within a few minutes.
    The path is steep, muddy, and rather dangerous.
    Her shoes were covered in chalk and dust.
    The tide was out, so we walked to the island.
    The scouts cooked their supper over an open fire.
    He lost his purse somewhere between here and the zoo.
    The curtain parted to reveal a ship in full sail.
    The old woman fed breadcrumbs to the sparrows.
    Every autumn the geese fly south over our valley.
    The guard unlocked the gate and waved us through.
    A cube has six faces, eight corners, and twelve edges.
    We could hear the surf from the top of the dunes.
    The vase fell from the shelf without breaking.
    The drummer kept time while the others rested.
    The village lies in the shadow of a huge volcano.
    Are you sure that the oven has been turned off?
    The ferry sails at noon unless the sea is rough.
    She bowed to the audience and left the stage.
    The roots of the willow reach down to the water.
    The blacksmith forged a hinge for the stable door.
    The committee meets on the third Tuesday of the month.
    A zebra has stripes so that it can vanish in a herd.
    The bottle was thrown overboard with a message inside.
    The bough broke under the weight of the fruit.
    The puppet danced whenever the strings were pulled.
    Mother usually sews by the light of that window.
    A casual remark can ruin a pleasant evening.
    The explosion could be heard on the other shore.
    The division of the land caused years of confusion.
    They watched television while the pie was in the oven.
    Our vision grows weaker as the hours pass.
    """.strip().splitlines()
)


def draw_sentence(generator: np.random.Generator, *, written: float = 0.15) -> str:
    """A sentence: with probability `written` one of `SENTENCES`, else one of the grammar."""
    if generator.random() < written:
        return SENTENCES[generator.integers(len(SENTENCES))]
    return compose(generator)
